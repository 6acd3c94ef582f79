"""ONNX files in model directories, as optimum and sentence-transformers leave them there. Knows no torch."""

from glob import escape
from pathlib import Path

from models.keys import ModelDirectoryError

USUAL_NAMES = ("model*.onnx", "onnx/model*.onnx")
"""Patterns, of the directory and of the Transformer's folder in it: what follows `model` is how it was quantised or
optimised. What decoders consist of begins with other words."""
DATA_NAMES = ("_data*", ".data*")
"""What the files of external data are called beyond the ONNX file's own name."""


def list_onnx_files(directory: Path, transformer: str) -> list[str]:
    """Those with a usual name, relative to the directory."""
    folders = dict.fromkeys((directory, directory / transformer))
    found = {path for folder in folders for name in USUAL_NAMES for path in folder.glob(name)}
    return sorted(str(path.relative_to(directory)) for path in found)


def find_only_file(directory: Path, transformer: str) -> str | None:
    """None where there is none. Raises ModelDirectoryError where there are several."""
    files = list_onnx_files(directory, transformer)
    if len(files) > 1:
        raise ModelDirectoryError(
            f"{directory}: no weights, and several ONNX files: {', '.join(files)}. Set engine.onnxruntime.file to the "
            "one that is to be served"
        )
    return files[0] if files else None


def count_bytes(file: Path) -> int:
    """With its external data, as far as that lies beside it under its name. Raises ModelDirectoryError."""
    try:
        data = {path for name in DATA_NAMES for path in file.parent.glob(escape(file.name) + name)}
        return sum(path.stat().st_size for path in {file, *data})
    except OSError as error:
        raise ModelDirectoryError(f"{file}: cannot be read: {error.strerror}") from None
