"""Where the sockets and shared files of one start lie: a folder that nobody cleans away, with a name short enough."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.config import ConfigError

MAX_SOCKET_PATH = 107
"""Bytes of a Unix socket's path, the closing zero left out (unix(7))."""
LONGEST_NAME = len("/padless-xxxxxxxx/engine-999-99.sock")


@contextmanager
def make_run_dir() -> Iterator[Path]:
    """Removed at the end. Raises ConfigError where there is no place for it."""
    path = Path(tempfile.mkdtemp(prefix="padless-", dir=choose_parent()))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def choose_parent() -> Path:
    """The session's own runtime folder, which lasts as long as it; else the system's, for who may write there; else the
    user's cache. Folders for temporary files come last: cleaners empty them of what is some days old.

    Raises ConfigError.
    """
    candidates = [os.environ.get("XDG_RUNTIME_DIR"), "/run", make_cache_dir(), find_temporary(), "/tmp"]
    for candidate in candidates:
        if candidate and is_usable(Path(candidate)):
            return Path(candidate)
    raise ConfigError("no folder for sockets: set XDG_RUNTIME_DIR to one that can be written to and has a short name")


def make_cache_dir() -> str | None:
    try:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "padless"
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return str(path)


def find_temporary() -> str:
    """Wanted even where another folder is taken: torch does not start without. Raises ConfigError."""
    try:
        return tempfile.gettempdir()
    except OSError:  # as in a container whose root is read-only
        raise ConfigError(
            "no folder for temporary files can be written to: set TMPDIR to one, or mount one on /tmp"
        ) from None


def is_usable(path: Path) -> bool:
    is_short = len(os.fsencode(path)) + LONGEST_NAME <= MAX_SOCKET_PATH
    return is_short and path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def keep_fresh(path: Path) -> None:
    """To be called once in a while: cleaners go by the time of the last use."""
    for item in (path, *path.rglob("*")):
        try:
            os.utime(item)
        except OSError:  # gone meanwhile
            continue
