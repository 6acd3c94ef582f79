"""Ops that only this backend has: layers over packed weights, and the rounding of weights to int8.

`padless::linear_act_packed`, `padless::linear_int8_packed`, `padless::max_logits_packed`, `padless::experts_packed`: as
the ops without `_packed`, over weights as `layouts.py` lays them out, those of experts one behind the other, and a
bias padded likewise.

`padless::round_channels`: weight fp32 [out_features, in_features] -> int8 in the form of `split_groups`
(`quantization/weights.py`), and `scale` fp32 [out_features] is written; `limits`: where a channel's largest weight may
come to lie.
"""

import torch
from torch import Tensor

from runtime.backends.cpu.layouts import round_up, unpack_float, unpack_int8
from runtime.ops.experts import experts, experts_shape
from runtime.ops.linear_act import ACTIVATION, linear_act
from runtime.ops.linear_int8 import linear_int8, new_out
from runtime.ops.max_logits import max_logits
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


def max_logits_packed(rows: Tensor, packed: Tensor, vocab_size: int, bias: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The reference: that of `max_logits` over what was packed."""
    return max_logits(rows, unpack_float(packed, vocab_size, rows.shape[-1]), bias[:vocab_size], cu_seqlens)


def max_logits_packed_shape(rows: Tensor, vocab_size: int, cu_seqlens: Tensor) -> Tensor:
    return rows.new_empty(cu_seqlens.shape[0] - 1, vocab_size)


def experts_packed(
    x: Tensor,
    router: Tensor,
    up: Tensor,
    down: Tensor,
    num_experts: int,
    width: int,
    top_k: int,
    act: str,
    is_gated: bool,
    renormalize: bool,
) -> Tensor:
    """The reference: that of `experts` over what was packed; `width` of one expert."""
    hidden_size = x.shape[1]
    unpacked_up, up_scale = unpack_experts(up, width * (2 if is_gated else 1), hidden_size)
    unpacked_down, down_scale = unpack_experts(down, hidden_size, width)
    unpacked_router = unpack_float(router, num_experts, hidden_size)
    return experts(
        *(x, unpacked_router, unpacked_up, unpacked_down, top_k, act, is_gated, renormalize, up_scale, down_scale)
    )


def experts_packed_shape(x: Tensor) -> Tensor:
    return experts_shape(x)


def unpack_experts(packed: Tensor, out_features: int, in_features: int) -> tuple[Tensor, Tensor | None]:
    """What `pack_experts` has packed; without scales where it is not int8."""
    if packed.dtype != torch.uint8:
        return torch.stack([unpack_float(each, out_features, in_features) for each in packed]), None
    values, scales = zip(*(unpack_int8(each, out_features, in_features) for each in packed), strict=True)
    return torch.stack(values), torch.stack(scales)


def round_channels(weight: Tensor, limits: Tensor, overflow_free: bool, scale: Tensor) -> Tensor:
    """The reference."""
    values, found = round_by_torch(weight, tuple(limits.tolist()), overflow_free)
    scale.copy_(found)
    return values.transpose(0, 1).contiguous()


def round_channels_shape(weight: Tensor) -> Tensor:
    return weight.new_empty(weight.shape[0], 4, round_up(weight.shape[1], 8) // 4, dtype=torch.int8)


EXPERTS_PACKED = define_op(experts_packed, experts_packed_shape, words={"act": ACTIVATION})
LINEAR_ACT_PACKED = define_op(linear_act_packed, linear_act_packed_shape, words={"act": ACTIVATION})
LINEAR_INT8_PACKED = define_op(linear_int8_packed, linear_int8_packed_shape, words={"act": ACTIVATION})
MAX_LOGITS_PACKED = define_op(max_logits_packed, max_logits_packed_shape)
ROUND_CHANNELS = define_op(round_channels, round_channels_shape, mutates=["scale"])
