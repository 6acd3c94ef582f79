"""Results as files: JSON with the machine they were measured on, and tables for people."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from runtime.backends.cpu.build import read_cpu_flags

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "fastapi", "uvicorn")


def describe_machine() -> dict[str, Any]:
    return {
        "date": date.today().isoformat(),
        "cpu": read_cpu_model(),
        "cores": os.cpu_count(),
        "flags": [
            flag for flag in ("avx2", "avx_vnni", "avx512f", "avx512_bf16", "amx_bf16") if flag in read_cpu_flags()
        ],
        "python": platform.python_version(),
        "packages": {name: find_package_version(name) for name in PACKAGES},
        "commit": read_commit(),
    }


def read_cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def find_package_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def read_commit() -> str | None:
    """With a + where the working tree has changes."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "--", ":!bench/results"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.strip() + "+" * bool(dirty.strip())


def write_results(
    name: str, table: Sequence[Sequence[str]], results: Any, note: str = "", folder: Path = RESULTS
) -> None:
    """Print the table, and keep both it and the numbers in `folder`. `note`: what to know of the table."""
    text = save_results(name, table, results, note, folder)
    print(f"\n{name}\n{text}")


def save_results(name: str, table: Sequence[Sequence[str]], results: Any, note: str, folder: Path) -> str:
    """Without printing: the table as text."""
    folder.mkdir(exist_ok=True)
    machine = describe_machine()
    text = f"{note}\n\n" * bool(note) + format_table(table)
    (folder / f"{name}.json").write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    heading = f"{machine['cpu']}, {machine['cores']} cores, torch {machine['packages']['torch']}"
    (folder / f"{name}.txt").write_text(f"{machine['date']}, {heading}, commit {machine['commit']}\n\n{text}\n")
    return text


def format_table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
