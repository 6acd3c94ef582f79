"""Checkpoint files to parameters. Ends with nothing missing and nothing left over, or fails naming the tensors."""

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from models.keys import ModelDirectoryError
from models.weight_files import list_files
from runtime.lazy_module import LazyWeight

OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What weights may be stored in. Narrower types need scales, which would be another format."""


def open_checkpoint(directory: Path) -> dict[str, LazyWeight]:
    """All tensors of a model directory, from safetensors if there are any, else from a pickle read as weights only."""
    tensors: dict[str, LazyWeight] = {}
    for file in list_files(directory):
        tensors |= open_safetensors(file) if file.suffix == ".safetensors" else open_pickle(file)
    for old, new in OLD_NAMES:
        tensors = {name.replace(old, new): value for name, value in tensors.items()}
    return tensors


def open_safetensors(file: Path) -> dict[str, LazyWeight]:
    """Raises ModelDirectoryError where the file cannot be read."""
    try:
        file.open("rb").close()  # safetensors says of every file that it cannot open that there is none.
        with safe_open(file, "pt") as content:
            # What `get_tensor` gives is mapped: nothing is read to know its shape.
            likes = {name: content.get_tensor(name).to("meta") for name in content.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelDirectoryError(f"{file}: cannot be read: {first_line(error)}") from None
    return {name: LazyWeight(like, partial(read_tensor, file, name)) for name, like in likes.items()}


def read_tensor(file: Path, name: str) -> Tensor:
    """Opened for each: what is mapped counts as this process's memory until the file is closed."""
    with safe_open(file, "pt") as content:
        value: Tensor = content.get_tensor(name)
        return value


def open_pickle(file: Path) -> dict[str, LazyWeight]:
    """Raises ModelDirectoryError where the file cannot be read, or holds more than tensors."""
    try:
        content = load_pickle(file)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise ModelDirectoryError(f"{file}: cannot be read: {first_line(error)}") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelDirectoryError(f"{file}: must hold a dictionary of tensors and nothing else")
    return {str(name): LazyWeight.of(value) for name, value in content.items()}


def load_pickle(file: Path) -> object:
    """Mapped, but for the format of torch before 1.6."""
    if zipfile.is_zipfile(file):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return torch.load(file, map_location="cpu", weights_only=True)


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def rename_tensors(
    tensors: dict[str, LazyWeight], prefix: str, renames: Sequence[tuple[str, str]], ignored: Sequence[str]
) -> dict[str, LazyWeight]:
    """To our names. Names that nothing matches stay as they are, and are reported by `check_weights`."""
    renamed: dict[str, LazyWeight] = {}
    for name, value in tensors.items():
        bare = name.removeprefix(prefix)
        target = next(match_rename(bare, renames), None)
        if target is not None:
            # A second tensor for the same place is left over, not a silent replacement.
            renamed[name if target in renamed else target] = value
        elif not any(re.fullmatch(pattern, bare) for pattern in ignored):
            renamed[name] = value
    return renamed


def cut_joined(tensors: dict[str, LazyWeight]) -> dict[str, LazyWeight]:
    """What is named `q+k+v.weight` as three tensors, its rows in as many equal parts; as it is where they are not."""
    cut: dict[str, LazyWeight] = {}
    for name, value in tensors.items():
        owner, _, joined = name.rpartition(".")[0].rpartition(".")
        parts, rows = joined.split("+"), value.like.shape[0] if value.like.ndim else 1
        if len(parts) == 1 or rows % len(parts):
            cut[name] = value
            continue
        size = rows // len(parts)
        for index, part in enumerate(parts):
            leaf = f"{owner}.{part}.{name.rpartition('.')[2]}"
            cut[leaf] = value.then(partial(take_rows, index * size, (index + 1) * size))
    return cut


def take_rows(start: int, end: int, value: Tensor) -> Tensor:
    return value[start:end]


def match_rename(name: str, renames: Sequence[tuple[str, str]]) -> Iterator[str]:
    for pattern, replacement in renames:
        match = re.fullmatch(pattern, name)
        if match:
            yield match.expand(replacement)


def resolve_tied_head(tensors: dict[str, LazyWeight], head: str, table: str, source: Path) -> None:
    """One tensor for a language model's output head and the table of embeddings that it is tied to, under `table`.

    Checkpoints hold either or both, perhaps in two types. Raises ModelDirectoryError where their values differ.
    """
    value = tensors.pop(head, None)
    if value is None:
        return
    rows = tensors.setdefault(table, value)
    if rows is not value and not have_equal_values(rows.read(), value.read()):
        raise ModelDirectoryError(
            f"{source}: the weights have an output head of their own, but tie_word_embeddings in config.json says that "
            "it is the table of embeddings. Set it to false"
        )


def have_equal_values(one: Tensor, other: Tensor) -> bool:
    """In the wider of two types of weights; any other types must be the same."""
    if one.shape != other.shape:
        return False
    if one.dtype != other.dtype and one.dtype in DTYPES and other.dtype in DTYPES:
        wide = torch.promote_types(one.dtype, other.dtype)
        one, other = one.to(wide), other.to(wide)
    return one.dtype == other.dtype and torch.equal(one, other)


def check_weights(module: nn.Module, tensors: dict[str, LazyWeight], source: Path) -> dict[str, LazyWeight]:
    """For every parameter of `module`, which is on `meta`, its values as fp32.

    Raises ModelDirectoryError for missing, left-over, misshapen or mistyped tensors; where they are read, for NaN and
    infinity.
    """
    faults = list(find_faults(dict(module.named_parameters()), tensors))
    if faults:
        raise ModelDirectoryError(f"{source}: the weights do not fit the architecture; {'; '.join(faults)}")
    empty = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    assert not empty, f"The buffers {', '.join(empty)} were built without values. This is a bug."
    return {name: value.then(partial(to_finite, name, source)) for name, value in tensors.items()}


def to_finite(name: str, source: Path, value: Tensor) -> Tensor:
    """fp32, contiguous, in memory of its own. Raises ModelDirectoryError for NaN and infinity."""
    # The least and the largest are NaN where anything is; unlike isfinite this makes no copies.
    if not value.is_meta and value.numel() and not all(bound.isfinite() for bound in value.aminmax()):
        raise ModelDirectoryError(f"{source}: the weights hold numbers that are not finite: {name}")
    return value.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def find_faults(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, LazyWeight]) -> Iterator[str]:
    """One text per kind of fault, with the first names of each."""
    common = sorted(parameters.keys() & tensors.keys())
    faults = {
        "missing": sorted(parameters.keys() - tensors.keys()),
        "left over": sorted(tensors.keys() - parameters.keys()),
        "misshapen": [
            f"{name} {list(tensors[name].like.shape)} instead of {list(parameters[name].shape)}"
            for name in common
            if tensors[name].like.shape != parameters[name].shape
        ],
        "mistyped": [f"{name} {tensors[name].like.dtype}" for name in common if tensors[name].like.dtype not in DTYPES],
    }
    for what, names in faults.items():
        if names:
            yield f"{what}: {list_names(names)}"


def list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
