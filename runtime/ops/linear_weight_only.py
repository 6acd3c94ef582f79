"""`padless::linear_weight_only`: a linear layer whose weight alone is rounded, to 8 bits or to 4.

    x [num_rows, in_features], bias [out_features] or None, residual [num_rows, out_features] or None
        -> [num_rows, out_features], of x's type

8 bits: weight int8 [out_features, in_features or more], scale fp32 [out_features], no `zero`. Columns that the weight
has more are zeros.

4 bits: weight uint8 [out_features, num_groups * group / 2], scale bf16 and zero uint8 [num_groups, out_features]; a
number is (value - zero) * scale of its group, `group` inputs side by side. A byte j of a group holds in its low half
the group's value j, and in its high half value j + group / 2, so that kernels multiply either half by whole pieces
of x.
"""

import torch
from torch import Tensor
from torch.nn import functional

from runtime.ops.linear_act import ACTIVATION, finish, linear_act_shape
from runtime.ops.spec import define_op


def find_group(weight: Tensor, zero: Tensor) -> int:
    """Inputs that share a scale."""
    return 2 * weight.shape[1] // len(zero)


def unpack_groups(weight: Tensor, num_groups: int) -> Tensor:
    """The values, uint8 [out_features, num_groups, group]."""
    packed = weight.unflatten(1, (num_groups, -1))
    return torch.cat([packed & 15, packed >> 4], 2)


def dequantize(weight: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """fp32 [out_features, in_features or more]"""
    if zero is None:
        return weight.float() * scale[:, None]
    values = unpack_groups(weight, len(zero)).float() - zero.t()[:, :, None].float()
    return (values * scale.t()[:, :, None].float()).flatten(1)


def linear_weight_only(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
    act: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """The reference: in fp32."""
    sums = functional.linear(x.float(), dequantize(weight, scale, zero)[:, : x.shape[1]])
    return finish(sums, bias, act, residual).to(x.dtype)


SPEC = define_op(linear_weight_only, linear_act_shape, words={"act": ACTIVATION})
OP = SPEC.target
