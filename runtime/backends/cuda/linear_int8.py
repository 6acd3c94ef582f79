"""int8 linear layers: one kernel from quantized rows to rows of numbers, or to quantized rows again."""

import torch
from torch import Tensor

from runtime.backends.cuda.gemm import Weight, launch_linear
from runtime.backends.cuda.quantized_rows import new_quantized_rows, write_quantized_rows

LEAST_SLICE = 512
"""Numbers; of a depth that is cut for few rows."""


def linear_int8_summed(
    x: Tensor,
    weight: Tensor,
    column_sums: Tensor,
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
    rows = x if x.dtype == torch.uint8 else new_quantized_rows(x, inverse_smooth, x_scale, x_zero)
    whole = Weight(weight, scale, column_sums)
    if dtype != torch.uint8 or out_scale > 0:
        how = (out_inverse_smooth, out_scale, out_zero)
        launch_linear(rows, whole, bias, act, residual, *how, least_slice=LEAST_SLICE, out=out)
        return
    # A row's range is known only after all of its columns, which are several programs' work.
    result = x.new_empty(len(x), len(weight), dtype=torch.bfloat16)
    launch_linear(rows, whole, bias, act, residual, least_slice=LEAST_SLICE, out=result)
    write_quantized_rows(result, len(weight), out_inverse_smooth, out_scale, out_zero, out=out)
