"""Folders that take long to fill, such as models: who finds one finds it whole, also after an interruption."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which gets its name once all is written."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    unfinished.rename(folder)
