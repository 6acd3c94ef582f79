"""What CTranslate2's workers share: converting a model, and opening it with the variant's options.

Imports nothing of ours: the workers run in their peer's environment.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ctranslate2

Model = TypeVar("Model")


def convert(model: Path, out: Path) -> None:
    shutil.rmtree(out)  # the converter wants to make the directory itself
    ctranslate2.converters.TransformersConverter(str(model)).convert(str(out))


def count_workers(options: dict[str, Any], threads: int) -> int:
    return threads if options["has_worker_per_thread"] else 1


def open_model(kind: Callable[..., Model], converted: Path, options: dict[str, Any], threads: int) -> Model:
    """`kind`: ctranslate2's Encoder or Generator. The workers share the threads out."""
    workers = count_workers(options, threads)
    return kind(
        str(converted),
        device="cpu",
        compute_type=options["compute_type"],
        inter_threads=workers,
        intra_threads=threads // workers,
    )
