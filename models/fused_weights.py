"""Weights that checkpoints hold as one and our layers as several, or the other way, or with rows in another order."""

import re
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from models.decoder_config import DecoderConfig
from runtime.lazy_module import LazyWeight

Cut = Callable[[Tensor, DecoderConfig], tuple[Tensor, ...]]
"""The rows of one weight, or bias, as those of queries, of keys and of values."""


def cut_qkv(cut: Cut, tensors: dict[str, LazyWeight], config: DecoderConfig) -> dict[str, LazyWeight]:
    """What is named `qkv` as three tensors; as it is where its rows are not those of the heads."""
    num_rows = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    found: dict[str, LazyWeight] = {}
    for name, value in tensors.items():
        if ".attention.qkv." not in name or value.like.shape[:1] != (num_rows,):
            found[name] = value
            continue
        for index, part in enumerate("qkv"):
            found[name.replace(".qkv.", f".{part}.")] = value.then(partial(take_part, cut, config, index))
    return found


def take_part(cut: Cut, config: DecoderConfig, index: int, value: Tensor) -> Tensor:
    return cut(value, config)[index]


def cut_stacked(value: Tensor, config: DecoderConfig) -> tuple[Tensor, ...]:
    """All queries, all keys, all values."""
    width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return value.split([width, kv_width, kv_width])


def cut_groups(value: Tensor, config: DecoderConfig) -> tuple[Tensor, ...]:
    """Of each head of keys the queries that read it, then itself, then its values."""
    group = config.num_heads // config.num_kv_heads
    heads = value.unflatten(0, (config.num_kv_heads, group + 2, config.head_dim))
    return heads[:, :-2].flatten(0, 2), heads[:, -2].flatten(0, 1), heads[:, -1].flatten(0, 1)


def part_pairs(tensors: dict[str, LazyWeight], config: DecoderConfig) -> dict[str, LazyWeight]:
    """Of queries and keys, whose positions turn element 2 * i of a head together with 2 * i + 1 there.

    Ours turn i together with i + head_dim / 2: the even ones come first. Products of queries and keys stay the same.
    """
    head_dim = config.head_dim
    return {
        name: value.then(partial(put_even_first, head_dim)) if can_part(name, value, head_dim) else value
        for name, value in tensors.items()
    }


def can_part(name: str, value: LazyWeight, head_dim: int) -> bool:
    is_turned = ".attention.q." in name or ".attention.k." in name
    return is_turned and value.like.ndim > 0 and value.like.shape[0] % head_dim == 0


def put_even_first(head_dim: int, value: Tensor) -> Tensor:
    return value.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


EXPERT = re.compile(r"(.*)\.experts\.(\d+)\.(gate|up|down)")


def stack_experts(tensors: dict[str, LazyWeight], config: DecoderConfig) -> dict[str, LazyWeight]:
    """Experts that have a weight each as one for all, their gates above what these let through; as they are where some
    are missing, or not of one shape."""
    count = config.experts.num_experts if config.experts else 0
    blocks = dict.fromkeys(match[1] for match in map(EXPERT.fullmatch, tensors) if match)
    stacked = dict(tensors)
    for block in blocks:
        for target, parts in (("up", ("gate", "up")), ("down", ("down",))):
            names = [[f"{block}.experts.{expert}.{part}" for part in parts] for expert in range(count)]
            flat = [name for each in names for name in each]
            are_whole = all(name in tensors and tensors[name].like.ndim == 2 for name in flat)
            kinds = {(tensors[name].like.shape, tensors[name].like.dtype) for name in flat if name in tensors}
            if are_whole and len(kinds) == 1 and f"{block}.{target}" not in tensors:
                stacked[f"{block}.{target}"] = stack([[stacked.pop(name) for name in each] for each in names])
    return stacked


def stack(weights: list[list[LazyWeight]]) -> LazyWeight:
    """Of each expert some weights of one shape, the one above the other: [num_experts, rows of all, columns]."""
    first, num_rows = weights[0][0].like, len(weights[0][0].like)
    like = first.new_empty(len(weights), num_rows * len(weights[0]), first.shape[1])

    def read() -> Tensor:
        values = torch.empty_like(like, device="cpu")
        for expert, parts in enumerate(weights):
            for index, part in enumerate(parts):
                values[expert, index * num_rows : (index + 1) * num_rows] = part.read()
        return values

    return LazyWeight(like, read)
