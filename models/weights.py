"""Checkpoint files to parameters. Ends with nothing missing and nothing left over, or fails naming the tensors."""

import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.keys import ModelDirectoryError
from models.weight_files import list_files

OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What weights may be stored in. Narrower types need scales, which would be another format."""


def read_checkpoint(directory: Path) -> dict[str, Tensor]:
    """All tensors of a model directory, from safetensors if there are any, else from a pickle read as weights only."""
    tensors: dict[str, Tensor] = {}
    for file in list_files(directory):
        tensors |= read_file(file)
    for old, new in OLD_NAMES:
        tensors = {name.replace(old, new): value for name, value in tensors.items()}
    return tensors


def read_file(file: Path) -> dict[str, Tensor]:
    """Raises ModelDirectoryError where a file cannot be read, or holds more than tensors."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, SafetensorError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise ModelDirectoryError(f"{file}: cannot be read: {first_line(error)}") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelDirectoryError(f"{file}: must hold a dictionary of tensors and nothing else")
    return {str(name): value for name, value in content.items()}


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def rename_tensors(
    tensors: dict[str, Tensor], prefix: str, renames: Sequence[tuple[str, str]], ignored: Sequence[str]
) -> dict[str, Tensor]:
    """To our names. Names that nothing matches stay as they are, and are reported by `assign_weights`."""
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        bare = name.removeprefix(prefix)
        target = next(match_rename(bare, renames), None)
        if target is not None:
            # A second tensor for the same place is left over, not a silent replacement.
            renamed[name if target in renamed else target] = value
        elif not any(re.fullmatch(pattern, bare) for pattern in ignored):
            renamed[name] = value
    return renamed


def match_rename(name: str, renames: Sequence[tuple[str, str]]) -> Iterator[str]:
    for pattern, replacement in renames:
        match = re.fullmatch(pattern, name)
        if match:
            yield match.expand(replacement)


def resolve_tied_head(tensors: dict[str, Tensor], head: str, table: str, source: Path) -> None:
    """One tensor for a language model's output head and the table of embeddings that it is tied to, under `table`.

    Checkpoints hold either or both, perhaps in two types. Raises ModelDirectoryError where their values differ.
    """
    value = tensors.pop(head, None)
    if value is None:
        return
    rows = tensors.setdefault(table, value)
    if not have_equal_values(rows, value):
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


def assign_weights(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Give every parameter its values, as fp32 in memory of their own; parameters may be on `meta` before.

    Raises ModelDirectoryError for missing, left-over, misshapen or mistyped tensors, and for NaN and infinity.
    """
    faults = list(find_faults(dict(module.named_parameters()), tensors))
    if faults:
        raise ModelDirectoryError(f"{source}: the weights do not fit the architecture; {'; '.join(faults)}")
    broken = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if broken:
        raise ModelDirectoryError(f"{source}: the weights hold numbers that are not finite: {list_names(broken)}")
    values = {
        name: value.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    module.load_state_dict(values, assign=True)
    empty = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    assert not empty, f"The buffers {', '.join(empty)} were built without values. This is a bug."


def find_faults(parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]) -> Iterator[str]:
    """One text per kind of fault, with the first names of each."""
    common = sorted(parameters.keys() & tensors.keys())
    faults = {
        "missing": sorted(parameters.keys() - tensors.keys()),
        "left over": sorted(tensors.keys() - parameters.keys()),
        "misshapen": [
            f"{name} {list(tensors[name].shape)} instead of {list(parameters[name].shape)}"
            for name in common
            if tensors[name].shape != parameters[name].shape
        ],
        "mistyped": [f"{name} {tensors[name].dtype}" for name in common if tensors[name].dtype not in DTYPES],
    }
    for what, names in faults.items():
        if names:
            yield f"{what}: {list_names(names)}"


def list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
