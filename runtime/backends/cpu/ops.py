"""Ops that only this backend has: linear layers over packed weights, and the rounding of weights to int8.

`padless::linear_act_packed`, `padless::linear_int8_packed`: as the ops without `_packed`, over `packed` as `packing.py`
lays it out, and a bias padded likewise.

`padless::round_channels`: weight fp32 [out_features, in_features] -> int8 in the form of `split_groups`
(`quantization/weights.py`), and `scale` fp32 [out_features] is written; `limits`: where a channel's largest weight may
come to lie.
"""

import torch
from torch import Tensor

from runtime.backends.cpu.layouts import round_up, unpack_float, unpack_int8
from runtime.ops.linear_act import ACTIVATION, linear_act
from runtime.ops.linear_int8 import linear_int8, new_out
from runtime.ops.spec import define_op
from runtime.quantization.weights import round_by_torch


def linear_act_packed(
    x: Tensor,
    packed: Tensor,
    out_features: int,
    bias: Tensor | None = None,
    act: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """The reference: that of `linear_act` over what was packed."""
    bias = None if bias is None else bias[:out_features]
    return linear_act(x, unpack_float(packed, out_features, x.shape[-1]), bias, act, residual)


def linear_act_packed_shape(x: Tensor, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


def linear_int8_packed(
    x: Tensor,
    packed: Tensor,
    out_features: int,
    in_features: int,
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
    """The reference: that of `linear_int8` over what was packed."""
    values, scale = unpack_int8(packed, out_features, in_features)
    bias = None if bias is None else bias[:out_features]
    return linear_int8(
        *(x, values, scale, bias, act, residual, inverse_smooth, x_scale, x_zero, dtype),
        *(out_inverse_smooth, out_scale, out_zero),
    )


def linear_int8_packed_shape(x: Tensor, out_features: int, dtype: torch.dtype | None) -> Tensor:
    return new_out(x, out_features, dtype)


def round_channels(weight: Tensor, limits: Tensor, overflow_free: bool, scale: Tensor) -> Tensor:
    """The reference."""
    values, found = round_by_torch(weight, tuple(limits.tolist()), overflow_free)
    scale.copy_(found)
    return values.transpose(0, 1).contiguous()


def round_channels_shape(weight: Tensor) -> Tensor:
    return weight.new_empty(weight.shape[0], 4, round_up(weight.shape[1], 8) // 4, dtype=torch.int8)


LINEAR_ACT_PACKED = define_op(linear_act_packed, linear_act_packed_shape, words={"act": ACTIVATION})
LINEAR_INT8_PACKED = define_op(linear_int8_packed, linear_int8_packed_shape, words={"act": ACTIVATION})
ROUND_CHANNELS = define_op(round_channels, round_channels_shape, mutates=["scale"])
