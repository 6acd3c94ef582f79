"""Weights laid out as the innermost loops read them, once, when an engine is built."""

from collections.abc import Callable

import torch
from torch import Tensor

PANEL = 16
"""Columns of a packed weight that lie together; PANEL in gemm.h."""


def pack_fp32(weight: Tensor) -> Tensor:
    """[out_features, in_features] -> [panels, in_features, 16], zero columns added at the end."""
    num_columns, depth = weight.shape
    padded = pad_zeros(weight, round_up(num_columns, PANEL), depth)
    return padded.view(-1, PANEL, depth).transpose(1, 2).contiguous()


def pack_bf16(weight: Tensor) -> Tensor:
    """[out_features, in_features] -> bf16 [panels, in_features / 2, 16, 2], zeros added to whole panels of tiles."""
    num_columns, depth = weight.shape
    padded = pad_zeros(weight.bfloat16(), round_up(num_columns, PANEL), round_up(depth, 32))
    return padded.view(-1, PANEL, padded.shape[1] // 2, 2).transpose(1, 2).contiguous()


def unpack_float(packed: Tensor, out_features: int, in_features: int) -> Tensor:
    """What `pack_fp32` or `pack_bf16` has packed."""
    if packed.dtype == torch.bfloat16:
        packed = packed.transpose(2, 3).reshape(packed.shape[0], -1, PANEL)
    return packed.transpose(1, 2).reshape(-1, packed.shape[1])[:out_features, :in_features]


def pack_int8(values: Tensor, scale: Tensor) -> Tensor:
    """int8 [out_features, in_features], fp32 [out_features] -> bytes: scales, column sums, panels (linear_int8.cpp)."""
    num_columns, depth = values.shape
    padded = pad_zeros(values, round_up(num_columns, PANEL), round_up(depth, 64))
    num_scales = round_up(num_columns, 2 * PANEL)
    packed = torch.zeros(8 * num_scales + padded.numel(), dtype=torch.uint8)
    packed[: 4 * num_scales].view(torch.float32)[:num_columns] = scale
    packed[4 * num_scales : 8 * num_scales].view(torch.int32)[:num_columns] = values.sum(1, dtype=torch.int32)
    panels = packed[8 * num_scales :].view(torch.int8).view(-1, padded.shape[1] // 4, PANEL, 4)
    panels.copy_(padded.view(-1, PANEL, padded.shape[1] // 4, 4).transpose(1, 2))
    return packed


def unpack_int8(packed: Tensor, out_features: int, in_features: int) -> tuple[Tensor, Tensor]:
    """The values and scales that `pack_int8` has packed."""
    num_scales = round_up(out_features, 2 * PANEL)
    scales = packed[: 4 * num_scales].view(torch.float32)[:out_features]
    panels = packed[8 * num_scales :].view(torch.int8).view(-1, round_up(in_features, 64) // 4, PANEL, 4)
    values = panels.transpose(1, 2).reshape(-1, round_up(in_features, 64))
    return values[:out_features, :in_features], scales


def pack_experts(weights: Tensor, scales: Tensor | None, pack: Callable[..., Tensor]) -> Tensor:
    """[num_experts, out_features, in_features] -> what `pack` makes of each one's, the one behind the other.

    `scales`: [num_experts, out_features] of int8.
    """
    first = pack(weights[0]) if scales is None else pack(weights[0], scales[0])
    packed = first.new_empty(len(weights), *first.shape)
    for expert, weight in enumerate(weights):
        packed[expert] = pack(weight) if scales is None else pack(weight, scales[expert])
    return packed


def pad_bias(bias: Tensor) -> Tensor:
    """fp32, zeros added up to a whole panel."""
    padded = torch.zeros(round_up(len(bias), PANEL))
    padded[: len(bias)] = bias
    return padded


def pad_zeros(matrix: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """With zeros at the ends; the matrix itself where it needs none."""
    if matrix.shape == (num_rows, num_columns):
        return matrix.contiguous()
    padded = matrix.new_zeros(num_rows, num_columns)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
