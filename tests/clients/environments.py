"""Virtual environments for clients, made once for each list of requirements and kept in the cache directory."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
INSTALLED = "installed"
"""Written last: an environment without it was interrupted, and is made anew."""
CLIENT_S = 300.0


class InstallError(RuntimeError):
    """An environment cannot be made; the text is the reason in one line."""


def prepare_environment(requirements: Path) -> Path:
    """The Python of an environment that has what the file lists. Raises InstallError."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "padless-tests"
    pins = f"python {sys.version_info.major}.{sys.version_info.minor}\n{requirements.read_text()}"
    folder = cache / hashlib.sha256(pins.encode()).hexdigest()[:12]
    python = folder / "bin" / "python"
    if not (folder / INSTALLED).exists():
        shutil.rmtree(folder, ignore_errors=True)
        install([sys.executable, "-m", "venv", str(folder)])
        install([str(python), "-m", "pip", "install", "--quiet", "--no-compile", "--requirement", str(requirements)])
        (folder / INSTALLED).touch()
    return python


def install(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr[-200:]]
        raise InstallError(f"{' '.join(command[1:4])}: {lines[-1]}")


def run_script(python: Path, script: str, url: str, given: Any, folder: Path) -> Any:
    """What a script of this folder prints as JSON; it gets the server's address, and what is given as JSON."""
    return json.loads(run_python([str(python), str(FOLDER / script), url, json.dumps(given)], folder))


def run_python(command: list[str], folder: Path) -> str:
    """What it prints. In an empty folder, without the modules, keys and proxies of whoever runs the tests."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        env=kept | {"HOME": str(folder), "PYTHONSAFEPATH": "1"},
        timeout=CLIENT_S,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command[1:])}\n{done.stderr[-4000:]}"
    return done.stdout
