"""Checkpoint files to parameters. Ends with nothing missing and nothing left over, or fails naming the tensors."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.info import ModelDirectoryError, read_json

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))


def read_checkpoint(directory: Path) -> dict[str, Tensor]:
    """All tensors of a model directory, from safetensors if there are any, else from a pickle read as weights only."""
    tensors: dict[str, Tensor] = {}
    for file in list_files(directory):
        tensors |= read_file(file)
    for old, new in OLD_NAMES:
        tensors = {name.replace(old, new): value for name, value in tensors.items()}
    return tensors


def list_files(directory: Path) -> list[Path]:
    for single, index in zip(SINGLE_FILES, INDEX_FILES, strict=True):
        if (directory / single).exists():
            return [directory / single]
        if (directory / index).exists():
            return sorted({directory / name for name in read_json(directory / index)["weight_map"].values()})
    raise ModelDirectoryError(f"{directory}: no weights; expected one of {', '.join(SINGLE_FILES + INDEX_FILES)}")


def read_file(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        tensors: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        return tensors
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise ModelDirectoryError(f"{file}: cannot be read: {error}") from None


def rename_tensors(
    tensors: dict[str, Tensor], prefix: str, renames: Sequence[tuple[str, str]], ignored: Sequence[str]
) -> dict[str, Tensor]:
    """To our names. Names that nothing matches stay as they are, and are reported by `assign_weights`."""
    renamed = {}
    for name, value in tensors.items():
        bare = name.removeprefix(prefix)
        target = next(match_rename(bare, renames), None)
        if target is not None:
            renamed[target] = value
        elif not any(re.fullmatch(pattern, bare) for pattern in ignored):
            renamed[name] = value
    return renamed


def match_rename(name: str, renames: Sequence[tuple[str, str]]) -> Iterator[str]:
    for pattern, replacement in renames:
        match = re.fullmatch(pattern, name)
        if match:
            yield match.expand(replacement)


def assign_weights(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Fill every parameter, as fp32. Raises ModelDirectoryError for missing, left-over or misshapen tensors."""
    parameters = dict(module.named_parameters())
    missing = sorted(parameters.keys() - tensors.keys())
    left_over = sorted(tensors.keys() - parameters.keys())
    misshapen = sorted(
        f"{name} {list(tensors[name].shape)} instead of {list(parameter.shape)}"
        for name, parameter in parameters.items()
        if name in tensors and tensors[name].shape != parameter.shape
    )
    faults = [
        f"{what} {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for what, names in (("missing:", missing), ("left over:", left_over), ("misshapen:", misshapen))
        if names
    ]
    if faults:
        raise ModelDirectoryError(f"{source}: the weights do not fit the architecture; {'; '.join(faults)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
