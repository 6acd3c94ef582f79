"""`padless::linear_int8`: a linear layer over uint8 rows and int8 weights, summed in int32.

    x [num_rows, in_features], weight int8 [out_features, in_features], scale fp32 [out_features], bias or None
        -> [num_rows, out_features] of type `dtype`, fp32 if that is None

The rows are quantised by the layer itself, after `inverse_smooth` [in_features] (SmoothQuant, Xiao et al. 2023), each
by its own range or all by `x_scale` and `x_zero` where calibration found them; or they come quantised already
(`quantized_rows`). `act` and `residual` [num_rows, out_features] are applied to the sums; with `dtype` uint8 the result
is quantised for the next layer, by the arguments that begin with `out_`.
"""

import torch
from torch import Tensor

from runtime.ops.linear_act import ACTIVATION, finish
from runtime.ops.quantized_rows import quantize_rows, row_bytes, split_rows
from runtime.ops.spec import define_op


def linear_int8_shape(x: Tensor, weight: Tensor, dtype: torch.dtype | None) -> Tensor:
    return new_out(x, weight.shape[0], dtype)


def new_out(x: Tensor, out_features: int, dtype: torch.dtype | None) -> Tensor:
    """An empty result: rows of numbers, or quantised ones."""
    width = row_bytes(out_features) if dtype == torch.uint8 else out_features
    return x.new_empty(x.shape[0], width, dtype=dtype or torch.float32)


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
) -> Tensor:
    """The reference: sums in fp64, which holds them exactly."""
    rows = x if x.dtype == torch.uint8 else quantize_rows(x, inverse_smooth, x_scale, x_zero)
    values, scales, zeros = split_rows(rows, weight.shape[1])
    sums = (values.double() - zeros) @ weight.double().t()
    result = finish(sums.float() * (scales * scale), bias, act, residual)
    if dtype == torch.uint8:
        return quantize_rows(result, out_inverse_smooth, out_scale, out_zero)
    return result.to(dtype or torch.float32)


SPEC = define_op(linear_int8, linear_int8_shape, words={"act": ACTIVATION})
OP = SPEC.target
