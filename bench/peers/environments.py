"""A virtual environment per set of pinned requirements, made once and kept in the cache directory."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

INSTALLED = "installed.txt"
"""Written last: an environment without it was interrupted, and is made anew."""


class InstallError(RuntimeError):
    """An environment cannot be made; the text is the reason in one line."""


def find_cache() -> Path:
    """Where environments, converted models and logs are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "padless-bench"


def hash_pins(requirements: Sequence[str]) -> str:
    """The same for the same requirements in any order, on the same Python version."""
    lines = [*sorted(requirements), f"python {sys.version_info.major}.{sys.version_info.minor}"]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def prepare_environment(requirements: Sequence[str], cache: Path) -> Path:
    """The Python of an environment that has these requirements, made first where there is none. Raises InstallError."""
    folder = cache / "environments" / hash_pins(requirements)
    python = folder / "bin" / "python"
    if not (folder / INSTALLED).exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        run_shown([sys.executable, "-m", "venv", str(folder)], "making an environment")
        run_shown(
            [str(python), "-m", "pip", "install", "--progress-bar=off", *requirements],
            f"installing {', '.join(requirements)}",
        )
        freeze = subprocess.run([str(python), "-m", "pip", "freeze"], capture_output=True, text=True, check=True)
        (folder / INSTALLED).write_text(freeze.stdout)
    return python


def run_shown(command: Sequence[str], title: str) -> None:
    """Run, showing the last line of output meanwhile. Raises InstallError with the line that names the error."""
    lines: list[str] = []
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
        tqdm(desc=title, unit=" lines", leave=False) as bar,
    ):
        for line in process.stdout:
            lines.append(line.strip())
            bar.set_postfix_str(lines[-1][:60])
            bar.update()
    if process.returncode:
        errors = [line for line in lines if line.startswith("ERROR:")]
        raise InstallError((errors or lines or [f"{command[0]} exited with {process.returncode}"])[-1])
