"""The files that hold a model's weights, and how many numbers are in them. Knows no torch."""

import math
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from models.keys import ModelDirectoryError, read_object, read_optional
from models.onnx_files import list_onnx_files

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
HALF_TYPES = ("float16", "bfloat16")
EXPERTS = ".experts."
"""In the names of their tensors."""


def has_weights(directory: Path) -> bool:
    return any((directory / name).exists() for name in SINGLE_FILES + INDEX_FILES)


def list_files(directory: Path) -> list[Path]:
    """Safetensors if there are any, else pickles. Raises ModelDirectoryError."""
    for single, index in zip(SINGLE_FILES, INDEX_FILES, strict=True):
        if (directory / single).exists():
            return [directory / single]
        if (directory / index).exists():
            return [directory / name for name in read_index(directory / index)]
    files = list_onnx_files(directory, "")
    remedy = f". Set engine.kind to onnxruntime to serve {' or '.join(files)}" if files else ""
    raise ModelDirectoryError(
        f"{directory}: no weights; expected one of {', '.join(SINGLE_FILES + INDEX_FILES)}{remedy}"
    )


def read_index(path: Path) -> list[str]:
    """The files of a sharded checkpoint, which lie beside their index."""
    weight_map = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelDirectoryError(f"{path}: the key 'weight_map' is missing; it must map tensors to files")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise ModelDirectoryError(f"{path}: the file {name!r} in weight_map is not beside the index")
    return names


def count_numbers(directory: Path, num_rows: int | None = None) -> int:
    """In all files of one folder, also where a model needs only some of them; with `num_rows` only in the matrices that
    have so many. Raises ModelDirectoryError."""
    return sum(count_in_file(file, num_rows) for file in list_files(directory))


def count_experts(directory: Path) -> int:
    """Numbers of all experts of all layers; what a pickle holds is not known. Raises ModelDirectoryError."""
    safe = [file for file in list_files(directory) if file.suffix == ".safetensors"]
    return sum(math.prod(shape) for file in safe for name, shape in read_shapes(file).items() if EXPERTS in name)


def count_only_matrix(directory: Path, num_rows: int) -> int:
    """Numbers of the matrix that alone has so many rows: a table of tokens to which an output head is tied. 0 where
    there are several or none; what a pickle holds is not known. Raises ModelDirectoryError."""
    safe = [file for file in list_files(directory) if file.suffix == ".safetensors"]
    found = [math.prod(shape) for file in safe for shape in read_shapes(file).values() if is_matrix(shape, num_rows)]
    return found[0] if len(found) == 1 else 0


def count_in_file(file: Path, num_rows: int | None) -> int:
    """A pickle, which could run code, is not read here: its size and the type that config.json names tell; it may
    consist of such matrices alone."""
    if file.suffix == ".safetensors":
        shapes = read_shapes(file).values()
        return sum(math.prod(shape) for shape in shapes if num_rows is None or is_matrix(shape, num_rows))
    try:
        return file.stat().st_size // find_stored_bytes(file.parent)
    except OSError as error:
        raise ModelDirectoryError(f"{file}: cannot be read: {error}") from None


def read_shapes(file: Path) -> dict[str, Sequence[int]]:
    """Of the tensors of a safetensors file, by name. Raises ModelDirectoryError."""
    try:
        file.open("rb").close()  # safetensors says of every file that it cannot open that there is none.
        with safe_open(file, "np") as content:
            return {name: content.get_slice(name).get_shape() for name in content.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelDirectoryError(f"{file}: cannot be read: {error}") from None


def is_matrix(shape: Sequence[int], num_rows: int) -> bool:
    return len(shape) == 2 and shape[0] == num_rows


def find_stored_bytes(directory: Path) -> int:
    """Of one number in a checkpoint."""
    keys = read_optional(directory / "config.json")
    return 2 if keys.get("dtype", keys.get("torch_dtype")) in HALF_TYPES else 4
