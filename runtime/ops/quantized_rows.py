"""Rows of activations as uint8, each with its own scale: what int8 linear layers multiply, and may hand to one another.

    float [num_rows, width] <-> uint8 [num_rows, row_bytes(width)]

A row is its values, zeros up to a multiple of 64, and 64 bytes that begin with the scale (fp32) and the zero point
(int32): value = (byte - zero) * scale. The range of a row always includes 0, so that 0 is exact.
"""

import torch
from torch import Tensor

TAIL_BYTES = 64


def row_bytes(width: int) -> int:
    return padded_width(width) + TAIL_BYTES


def padded_width(width: int) -> int:
    return -(-width // 64) * 64


def quantize_rows(x: Tensor, inverse_smooth: Tensor | None = None, scale: float = 0.0, zero: int = 0) -> Tensor:
    """`inverse_smooth` [width] is multiplied in first. A `scale` over 0 is for all rows, else each has its own."""
    values = x.float() if inverse_smooth is None else x.float() * inverse_smooth
    if scale > 0:
        scales = torch.full_like(values[:, :1], scale)
        zeros = torch.full_like(values[:, :1], zero)
    else:
        low, high = values.amin(1, keepdim=True).clamp(max=0), values.amax(1, keepdim=True).clamp(min=0)
        scales = torch.where(high > low, (high - low) / 255, torch.ones_like(high))
        zeros = (-low / scales).round()
    rows = x.new_zeros(x.shape[0], row_bytes(x.shape[1]), dtype=torch.uint8)
    rows[:, : x.shape[1]] = (values * (1 / scales) + zeros).round().clamp(0, 255).to(torch.uint8)
    tail = padded_width(x.shape[1])
    rows[:, tail : tail + 4] = scales.contiguous().view(torch.uint8)
    rows[:, tail + 4 : tail + 8] = zeros.to(torch.int32).contiguous().view(torch.uint8)
    return rows


def split_rows(rows: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The values uint8 [num_rows, width], scales fp32 [num_rows, 1] and zero points int32 [num_rows, 1]."""
    tail = padded_width(width)
    scales = rows[:, tail : tail + 4].contiguous().view(torch.float32)
    zeros = rows[:, tail + 4 : tail + 8].contiguous().view(torch.int32)
    return rows[:, :width], scales, zeros


def dequantize_rows(rows: Tensor, width: int) -> Tensor:
    values, scales, zeros = split_rows(rows, width)
    return (values.int() - zeros).float() * scales
