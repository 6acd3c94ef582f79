"""The low-rank matrices of a checkpoint of Jina embeddings v3 to those that its layers have (`models.adapters`)."""

from functools import partial

import torch
from torch import Tensor

from models.adapters_config import AdaptersConfig
from models.config import EncoderConfig
from runtime.lazy_module import LazyWeight

WORD, TYPES = "encoder.embeddings.word", "encoder.embeddings.token_type"


def place_adapters(tensors: dict[str, LazyWeight], config: EncoderConfig) -> dict[str, LazyWeight]:
    """The adapters' matrices as layers take them: of their products each is scaled, and lies by columns."""
    if config.adapters is None:
        return tensors
    placed = merge_types(split_qkv(tensors), config.adapters)
    scales = torch.tensor(config.adapters.scales)[:, None, None]
    for name in [name for name in placed if name.endswith((".lora_A", ".lora_B")) and placed[name].like.ndim == 3]:
        owner, _, part = name.rpartition(".")
        is_table = owner == WORD
        value = placed.pop(name)
        if part == "lora_A":
            placed[f"{owner}.lora_down"] = value.then(partial(torch.flatten, end_dim=1)) if is_table else value
        else:
            placed[f"{owner}.lora_up"] = value.then(partial(scale, scales, not is_table))
    return (fill_up(config, config.adapters) if config.adapters.folders else {}) | placed


def scale(scales: Tensor, is_turned: bool, value: Tensor) -> Tensor:
    return (value.transpose(1, 2) if is_turned else value) * scales.to(value.device)


def split_qkv(tensors: dict[str, LazyWeight]) -> dict[str, LazyWeight]:
    """Of adapters whose queries, keys and values are one layer: the first matrix is the same for all."""
    split = dict(tensors)
    for name in [name for name in tensors if ".qkv.lora_" in name and tensors[name].like.ndim == 3]:
        value = split.pop(name)
        for index, part in enumerate("qkv"):
            is_shared = name.endswith("lora_A")
            split[name.replace(".qkv.", f".{part}.")] = value if is_shared else value.then(partial(take_third, index))
    return split


def take_third(index: int, value: Tensor) -> Tensor:
    size = value.shape[1] // 3
    return value[:, index * size : (index + 1) * size]


def merge_types(tensors: dict[str, LazyWeight], adapters: AdaptersConfig) -> dict[str, LazyWeight]:
    """The table of token types, then that of each adapter."""
    rest = dict(tensors)
    found = [rest.pop(name, None) for name in (f"{TYPES}.weight", f"{TYPES}.lora_A", f"{TYPES}.lora_B")]
    base, first, second = found
    if base is None or base.like.ndim != 2:
        return tensors
    if first is None or second is None:
        merged = base.then(lambda value: value.repeat(1 + adapters.count, 1))
    else:
        scales = torch.tensor(adapters.scales)[:, None, None]
        merged = LazyWeight(
            base.like.new_empty(len(base.like) * (1 + adapters.count), base.like.shape[1]),
            lambda: merge(base.read().float(), first.read().float(), second.read().float(), scales),
        )
    return rest | {f"{TYPES}.weight": merged}


def merge(base: Tensor, first: Tensor, second: Tensor, scales: Tensor) -> Tensor:
    return torch.cat([base, (base + scales * (first @ second)).flatten(0, 1)])


def fill_up(config: EncoderConfig, adapters: AdaptersConfig) -> dict[str, LazyWeight]:
    """Zeros for every layer, in place of what the files of adapters leave out: they do not change it."""
    count, rank, width, wide = adapters.count, adapters.rank, config.hidden_size, config.intermediate_size
    sizes = {f"attention.{part}": (width, width) for part in "qkvo"} | {"up": (width, wide), "down": (wide, width)}
    shapes: dict[str, tuple[int, ...]] = {
        f"{WORD}.lora_down": (count * config.vocab_size, rank),
        f"{WORD}.lora_up": (count, rank, width),
    }
    for layer in range(config.num_layers):
        for name, (in_features, out_features) in sizes.items():
            owner = f"encoder.stack.layers.{layer}.{name}"
            shapes |= {
                f"{owner}.lora_down": (count, rank, in_features),
                f"{owner}.lora_up": (count, rank, out_features),
            }
    return {
        name: LazyWeight(torch.empty(shape, device="meta"), partial(torch.zeros, shape))
        for name, shape in shapes.items()
    }
