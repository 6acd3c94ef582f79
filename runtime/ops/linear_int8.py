"""`padless::linear_int8`: a linear layer over uint8 rows and int8 weights, summed in int32.

    x [num_rows, in_features], weight int8 [out_features, in_features], scale fp32 [out_features], bias or None
        -> [num_rows, out_features] of type `dtype`

The rows are quantised by the layer itself, after `inverse_smooth` [in_features] (SmoothQuant, Xiao et al. 2023), each
by its own range or all by `x_scale` and `x_zero` where calibration found them; or they come quantised already
(`quantized_rows`). `act` and `residual` [num_rows, out_features] are applied to the sums; with `dtype` uint8 the result
is quantised for the next layer, by the arguments that begin with `out_`.

`padless::linear_int8.packed` is the same over a weight packed for the CPU's instructions (`kernels/cpu/library.py`).
"""

import torch
from torch import Tensor

from runtime.ops.linear_act import ACTIVATIONS
from runtime.ops.quantized_rows import quantize_rows, row_bytes, split_rows

OPTIONS = (
    "Tensor? bias, str act, Tensor? residual, Tensor? inverse_smooth, float x_scale, int x_zero, ScalarType dtype, "
    "Tensor? out_inverse_smooth, float out_scale, int out_zero"
)
torch.library.define("padless::linear_int8", f"(Tensor x, Tensor weight, Tensor scale, {OPTIONS}) -> Tensor")
torch.library.define(
    "padless::linear_int8.packed", f"(Tensor x, Tensor packed, int out_features, int in_features, {OPTIONS}) -> Tensor"
)
X, BIAS, ACT, RESIDUAL, INVERSE_SMOOTH, X_SCALE, X_ZERO, DTYPE, OUT_INVERSE_SMOOTH, OUT_SCALE, OUT_ZERO = (
    0,
    *range(3, 13),
)
"""Where the arguments of `linear_int8` stand."""


@torch.library.register_fake("padless::linear_int8")
def linear_int8_shape(x: Tensor, weight: Tensor, scale: Tensor, *options: object) -> Tensor:
    return new_out(x, weight.shape[0], options[DTYPE - BIAS])


@torch.library.register_fake("padless::linear_int8.packed")
def linear_int8_packed_shape(
    x: Tensor, packed: Tensor, out_features: int, in_features: int, *options: object
) -> Tensor:
    return new_out(x, out_features, options[DTYPE - BIAS])


def new_out(x: Tensor, out_features: int, dtype: object) -> Tensor:
    assert isinstance(dtype, torch.dtype)
    width = row_bytes(out_features) if dtype == torch.uint8 else out_features
    return x.new_empty(x.shape[0], width, dtype=dtype)


def linear_int8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    act: str,
    residual: Tensor | None,
    inverse_smooth: Tensor | None,
    x_scale: float,
    x_zero: int,
    dtype: torch.dtype,
    out_inverse_smooth: Tensor | None,
    out_scale: float,
    out_zero: int,
) -> Tensor:
    """The reference: sums in fp64, which holds them exactly."""
    rows = x if x.dtype == torch.uint8 else quantize_rows(x, inverse_smooth, x_scale, x_zero)
    values, scales, zeros = split_rows(rows, weight.shape[1])
    sums = (values.double() - zeros) @ weight.double().t()
    result = sums.float() * (scales * scale)
    if bias is not None:
        result = result + bias.float()
    result = ACTIVATIONS[act](result)
    if residual is not None:
        result = result + residual.float()
    return quantize_rows(result, out_inverse_smooth, out_scale, out_zero) if dtype == torch.uint8 else result.to(dtype)


torch.library.impl("padless::linear_int8", "CompositeExplicitAutograd", linear_int8)
OP = torch.ops.padless.linear_int8.default
PACKED_OP = torch.ops.padless.linear_int8.packed
