"""Residual sum and norm, on a CPU in blocks of rows that stay in cache: torch's LayerNorm has no `out=` form."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from runtime.backends.plain.row_blocks import split_blocks
from runtime.ops.add_norm import add_norm as reference

BLOCK_ROWS = 256


def add_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    is_rms: bool = False,
    dtype: torch.dtype | None = None,
    *options: Any,
    out: Tensor,
) -> None:
    if bias is None or is_rms or dtype is not None:
        out.copy_(reference(x, residual, weight, bias, eps, is_rms, dtype, *options))
        return
    for rows in split_blocks(x, BLOCK_ROWS):
        summed = x[rows] if residual is None else torch.add(x[rows], residual[rows], out=out[rows])
        out[rows].copy_(normalize(summed, summed.shape[-1:], weight, bias, eps))


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = False,
    *,
    out: Tensor,
) -> None:
    for rows in split_blocks(x, BLOCK_ROWS):
        out[rows].copy_(normalize(x[rows], normalized_shape, weight, bias, eps))


def normalize(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """torch's CPU kernel takes 16-bit rows with fp32 weights and computes in fp32; CUDA's wants one type."""
    if weight is not None and x.dtype != weight.dtype and x.device.type != "cpu":
        x = x.to(weight.dtype)
    return functional.layer_norm(x, shape, weight, bias, eps)
