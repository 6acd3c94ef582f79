"""int8 linear layers through torch's own int8 GEMM, on a CPU in blocks of rows."""

import torch
from torch import Tensor
from torch.nn import functional

from runtime.backends.plain.row_blocks import split_blocks
from runtime.ops.linear_act import ACTIVATIONS
from runtime.ops.quantized_rows import quantize_rows, split_rows

BLOCK_ROWS = 512
LEAST_ROWS, STEP = 17, 8
"""Of the int8 GEMM that torch has for CUDA: it takes no fewer rows, and only widths that are multiples of the step."""


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
    for block in split_blocks(x, BLOCK_ROWS):
        rows = x[block] if x.dtype == torch.uint8 else quantize_rows(x[block], inverse_smooth, x_scale, x_zero)
        values, scales, zeros = split_rows(rows, weight.shape[1])
        # torch multiplies signed bytes only: both sides of (value - zero) move down by 128.
        sums = multiply((values.int() - 128).to(torch.int8), weight) + (128 - zeros) * column_sums
        result = sums.float().mul_(scales * scale)
        if bias is not None:
            result += bias.float()
        result = ACTIVATIONS[act](result)
        if residual is not None:
            result = result + residual[block].float()
        if dtype == torch.uint8:
            result = quantize_rows(result, out_inverse_smooth, out_scale, out_zero)
        out[block].copy_(result)


def multiply(rows: Tensor, weight: Tensor) -> Tensor:
    """int8 [num_rows, in_features] by int8 [out_features, in_features]: int32 [num_rows, out_features]."""
    (num_rows, in_features), out_features = rows.shape, len(weight)
    padding = -in_features % STEP
    rows = functional.pad(rows, (0, padding, 0, max(0, LEAST_ROWS - num_rows)))
    if padding or out_features % STEP:
        weight = functional.pad(weight, (0, padding, 0, -out_features % STEP))
    return torch._int_mm(rows, weight.t())[:num_rows, :out_features]
