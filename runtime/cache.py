"""Where the runtime keeps what it has made on this machine and would have to make again."""

import os
from pathlib import Path


def cache_dir(name: str) -> Path:
    """A folder of the XDG cache; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "padless" / name
