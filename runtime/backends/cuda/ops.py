"""Ops that only this backend has: int8 layers that are given the sums of their weights' columns.

Matrix instructions multiply signed bytes, and rows are of unsigned ones with a zero point: what the products are off by
is known from the sums of each output channel's weights, int32. They are made once, when an engine is built.

`padless::linear_int8_summed`: as `padless::linear_int8`, with `column_sums` [out_features]. `padless::experts_summed`:
as `padless::experts` of int8, with `up_sums` [num_experts, features of up] and `down_sums` [num_experts, hidden_size].
"""

import torch
from torch import Tensor

from runtime.ops.experts import experts, experts_shape
from runtime.ops.linear_act import ACTIVATION
from runtime.ops.linear_int8 import linear_int8, linear_int8_shape
from runtime.ops.spec import define_op


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
) -> Tensor:
    """The reference: that of `linear_int8`, which needs no sums."""
    return linear_int8(
        *(x, weight, scale, bias, act, residual, inverse_smooth, x_scale, x_zero, dtype),
        *(out_inverse_smooth, out_scale, out_zero),
    )


def linear_int8_summed_shape(x: Tensor, weight: Tensor, dtype: torch.dtype | None) -> Tensor:
    return linear_int8_shape(x, weight, dtype)


def experts_summed(
    x: Tensor,
    router: Tensor,
    up: Tensor,
    down: Tensor,
    top_k: int,
    act: str,
    is_gated: bool,
    renormalize: bool,
    up_scale: Tensor,
    down_scale: Tensor,
    up_sums: Tensor,
    down_sums: Tensor,
) -> Tensor:
    """The reference: that of `experts`, which needs no sums."""
    return experts(x, router, up, down, top_k, act, is_gated, renormalize, up_scale, down_scale)


LINEAR_INT8_SUMMED = define_op(linear_int8_summed, linear_int8_summed_shape, words={"act": ACTIVATION})
EXPERTS_SUMMED = define_op(experts_summed, experts_shape, words={"act": ACTIVATION})
