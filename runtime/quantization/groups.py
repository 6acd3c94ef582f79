"""Linear weights as 4 bits: groups of inputs side by side, each with a scale and a zero point of its own.

Groups have 128 inputs, or 64 or 32 where more do not divide a layer's; where 32 do not either, the last group is filled
up with zeros. Scales are rounded to bf16 before anything is rounded by them, which costs nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from runtime.quantization.weights import PART

GROUPS = (128, 64, 32)
MAX_VALUE = 15
SHARES = (1.0, 0.92, 0.84, 0.76, 0.68)
"""Of a group's range that may be kept: cutting off its ends makes the steps between smaller."""


@dataclass(frozen=True, slots=True)
class GroupedWeight:
    """As `padless::linear_weight_only` takes it: values uint8 [out_features, num_groups * group / 2], scale bf16 and
    zero uint8 [num_groups, out_features]."""

    values: Tensor
    scale: Tensor
    zero: Tensor


def choose_group(in_features: int) -> int:
    return next((group for group in GROUPS if in_features % group == 0), GROUPS[-1])


def quantize_groups(weight: Tensor) -> GroupedWeight:
    """Round `weight` [out_features, in_features], each group by what errs least of it.

    Raises ValueError where weights are not finite, or so large that their squares are not.
    """
    group = choose_group(weight.shape[1])
    num_groups = -(-weight.shape[1] // group)
    values = weight.new_empty(len(weight), num_groups * group // 2, dtype=torch.uint8)
    scale = weight.new_empty(num_groups, len(weight), dtype=torch.bfloat16)
    zero = torch.empty_like(scale, dtype=torch.uint8)
    num_spoilt, step = 0, max(1, PART // weight.shape[1])
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        rows = weight[part].detach().float()
        grouped = functional.pad(rows, (0, num_groups * group - rows.shape[1])).unflatten(1, (num_groups, group))
        part_values, part_scale, part_zero, error = round_groups(grouped)
        values[part] = (part_values[:, :, : group // 2] | part_values[:, :, group // 2 :] << 4).flatten(1)
        scale[:, part], zero[:, part] = part_scale.t(), part_zero.t()
        num_spoilt += int(error.isinf().any(1).sum())
    if num_spoilt:
        raise ValueError(f"the weights of {num_spoilt} of {len(weight)} output channels are not finite, or too large")
    return GroupedWeight(values, scale, zero)


def round_groups(grouped: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """fp32 [n, num_groups, group]: values uint8 of that shape; scales bf16, zero points uint8, and sums of squared
    errors, [n, num_groups], infinite where none is a number."""
    low, high = grouped.amin(2, keepdim=True).clamp(max=0), grouped.amax(2, keepdim=True).clamp(min=0)
    best_error = torch.full_like(low, torch.inf)
    best_scale, best_zero = torch.ones_like(low), torch.zeros_like(low)
    for share in SHARES:
        scale, zero = find_steps(low * share, high * share)
        values = round_by(grouped, scale, zero)
        error = (values - zero).mul_(scale).sub_(grouped).square_().sum(2, keepdim=True)
        is_better = error < best_error
        best_error = torch.where(is_better, error, best_error)
        best_scale, best_zero = torch.where(is_better, scale, best_scale), torch.where(is_better, zero, best_zero)
    values = round_by(grouped, best_scale, best_zero).nan_to_num_().to(torch.uint8)
    return values, best_scale[:, :, 0].bfloat16(), best_zero[:, :, 0].to(torch.uint8), best_error[:, :, 0]


def find_steps(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Scales that bf16 has, and zero points."""
    scale = torch.where(high > low, (high - low) / MAX_VALUE, 1.0).clamp(min=torch.finfo(torch.bfloat16).tiny)
    scale = scale.bfloat16().float()
    return scale, (-low / scale).round().clamp(0, MAX_VALUE)


def round_by(grouped: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return (grouped / scale).round_().add_(zero).clamp_(0, MAX_VALUE)
