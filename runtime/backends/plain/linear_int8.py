"""int8 linear layers through torch's own int8 GEMM, in blocks of rows."""

import torch
from torch import Tensor

from runtime.ops.linear_act import ACTIVATIONS
from runtime.ops.quantized_rows import quantize_rows, split_rows

BLOCK_ROWS = 512


def linear_int8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    act: str = "none",
    residual: Tensor | None = None,
    inverse_smooth: Tensor | None = None,
    x_scale: float = 0.0,
    x_zero: int = 0,
    dtype: torch.dtype | None = None,
    out_inverse_smooth: Tensor | None = None,
    out_scale: float = 0.0,
    out_zero: int = 0,
    *,
    out: Tensor,
) -> None:
    column_sums = weight.sum(1, dtype=torch.int32)
    for start in range(0, x.shape[0], BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        rows = x[block] if x.dtype == torch.uint8 else quantize_rows(x[block], inverse_smooth, x_scale, x_zero)
        values, scales, zeros = split_rows(rows, weight.shape[1])
        # torch multiplies signed bytes only: both sides of (value - zero) move down by 128.
        sums = torch._int_mm((values.int() - 128).to(torch.int8), weight.t()) + (128 - zeros) * column_sums
        result = sums.float().mul_(scales * scale)
        if bias is not None:
            result += bias.float()
        result = ACTIVATIONS[act](result)
        if residual is not None:
            result = result + residual[block].float()
        if dtype == torch.uint8:
            result = quantize_rows(result, out_inverse_smooth, out_scale, out_zero)
        out[block].copy_(result)
