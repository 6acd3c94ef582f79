"""Adapters in folders of their own, as PEFT saves them, to the tensors of a checkpoint that holds all of them."""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from models.adapters_config import FILE_NAME as CONFIG_NAME
from models.adapters_config import AdaptersConfig
from models.keys import ModelDirectoryError
from models.weights import open_safetensors
from runtime.lazy_module import LazyWeight

FILE_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
LINEAR, EMBEDDING = re.compile(r"(.+)\.lora_(A|B)\.weight"), re.compile(r"(.+)\.lora_embedding_(A|B)")
"""Those of a table lie the other way round."""
MERGED = "{}.parametrizations.weight.0.lora_{}"
"""What torch calls them where they are part of a model: [num_adapters, ...]."""


def open_adapters(directory: Path, adapters: AdaptersConfig) -> dict[str, LazyWeight]:
    """Nothing where the adapters have no folders. Raises ModelDirectoryError."""
    found: dict[str, dict[int, LazyWeight]] = {}
    for index, folder in enumerate(adapters.folders):
        path = directory / folder / FILE_NAME
        if not path.exists():
            raise ModelDirectoryError(f"{path}: there is no such file, which is to be beside {CONFIG_NAME}")
        for name, value in rename(path, open_safetensors(path)):
            found.setdefault(name, {})[index] = value
    return {name: stack(path, name, values, adapters.count) for name, values in found.items()}


def rename(path: Path, tensors: Mapping[str, LazyWeight]) -> Iterator[tuple[str, LazyWeight]]:
    """Raises ModelDirectoryError for what belongs to no layer."""
    for name, value in tensors.items():
        bare = name.removeprefix(PREFIX)
        if match := LINEAR.fullmatch(bare):
            yield MERGED.format(*match.groups()), value
        elif (match := EMBEDDING.fullmatch(bare)) and value.like.ndim == 2:
            yield MERGED.format(*match.groups()), value.then(torch.t)
        else:
            raise ModelDirectoryError(f"{path}: {name} is no low-rank matrix of a linear layer or an embedding")


def stack(path: Path, name: str, values: Mapping[int, LazyWeight], count: int) -> LazyWeight:
    """In the order of adapters. One that does not change the layer has zeros. Raises ModelDirectoryError."""
    shapes = {tuple(value.like.shape) for value in values.values()}
    if len(shapes) > 1:
        raise ModelDirectoryError(f"{path.parent.parent}: the adapters have {name} in the shapes {sorted(shapes)}")
    first = next(iter(values.values())).like
    return LazyWeight(first.new_empty(count, *first.shape), partial(read_stack, values, count))


def read_stack(values: Mapping[int, LazyWeight], count: int) -> Tensor:
    read = {index: value.read().float() for index, value in values.items()}
    zeros = torch.zeros_like(next(iter(read.values())))
    return torch.stack([read.get(index, zeros) for index in range(count)])
