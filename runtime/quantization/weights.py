"""Linear weights as int8 with one scale per output channel.

`overflow_free` weights are for CPUs that add products of bytes in 16 bits (`vpmaddubsw`, AVX2 without VNNI). The kernel
adds two such results before it widens them, so the four weights that meet in one 16-bit sum are kept small enough for
any activation from 0 to 255. Their columns are {8j, 8j+1, 8j+4, 8j+5} and {8j+2, 8j+3, 8j+6, 8j+7}.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from runtime.quantization.scheme import LinearScheme

MAX_INT8 = 127
GROUP_BOUND = 128
"""What the positive weights of a group may sum to, and the negative ones: 128 * 255 is the most that fits 16 bits."""
LIMITS = (127.0,)
OVERFLOW_FREE_LIMITS = (32.0, 48.0, 64.0, 72.0, 80.0, 90.0, 100.0, 112.0, 127.0)
"""Where the largest weight of a channel may come to lie. At 32 no group can be over the bound, whatever the weights."""

ALIGNMENT = 16
"""Bytes, and numbers of one byte each."""
PART = 1 << 21
"""Weights that are rounded at once: what each of several copies on the way takes."""

RoundChannels = Callable[[Tensor, tuple[float, ...], bool], tuple[Tensor, Tensor]]
"""(weight, where a channel's largest weight may lie, overflow_free) to int8 in `split_groups`' form, and scale.

A scale is NaN where none fits: the channel's weights, or their squares, are not finite."""


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """`values`: int8 [out_features, in_features], -127..127. `scale`: fp32 [out_features], all positive.

    values * scale[:, None] is the weight, times `smooth` of its scheme in each column. Of experts, both have a
    dimension more in front.
    """

    values: Tensor
    scale: Tensor

    def dequantize(self) -> Tensor:
        """fp32 [out_features, in_features], `smooth` still inside."""
        return self.values * self.scale[:, None]


def quantize_weight(
    weight: Tensor,
    *,
    scheme: LinearScheme | None,
    overflow_free: bool,
    round_channels: RoundChannels | None = None,
) -> QuantizedWeight:
    """Round `weight`, fp32 [out_features, in_features], by the scale that errs least in each channel.

    `scheme.smooth` is multiplied into the columns first. `round_channels`: how; torch does it where None is given.
    Raises ValueError where weights are not finite, or so large that their squares are not.
    """
    smooth = None if scheme is None else scheme.smooth
    limits = OVERFLOW_FREE_LIMITS if overflow_free else LIMITS
    values = torch.empty_like(weight, dtype=torch.int8, memory_format=torch.contiguous_format)
    scale = weight.new_empty(len(weight), dtype=torch.float32)
    step = max(1, PART // weight.shape[1])
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        rows = weight[part].detach().float()
        rows = rows.contiguous() if smooth is None else rows * smooth
        planes, scale[part] = (round_channels or round_by_torch)(rows, limits, overflow_free)
        values[part] = join_groups(planes)[:, : weight.shape[1]]
    spoilt = int(scale.isnan().sum())
    if spoilt:
        raise ValueError(f"the weights of {spoilt} of {len(scale)} output channels are not finite, or too large")
    return QuantizedWeight(values, scale)


def align_rows(values: Tensor) -> Tensor:
    """With columns of zeros, so that each row begins where a GPU can load 16 bytes at once."""
    return functional.pad(values, (0, -values.shape[1] % ALIGNMENT))


def stack_weights(each: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Those of experts."""
    return QuantizedWeight(torch.stack([one.values for one in each]), torch.stack([one.scale for one in each]))


def round_by_torch(weight: Tensor, limits: tuple[float, ...], overflow_free: bool) -> tuple[Tensor, Tensor]:
    """See RoundChannels. Takes a tenth of a second per million weights; `quantize_weight.cpp` does the same sooner."""
    planes, largest = split_groups(weight), weight.abs().amax(1, keepdim=True)
    best_error, best_scale = torch.full_like(largest, torch.inf), torch.full_like(largest, torch.nan)
    best_values = torch.zeros_like(planes, dtype=torch.int8)
    for limit in limits:
        scale = torch.where(largest > 0, largest / limit, 1.0).clamp(min=torch.finfo(torch.float32).tiny)
        scaled = planes / scale
        values = scaled.round().clamp_(-MAX_INT8, MAX_INT8)
        if overflow_free:
            bound_groups(values, scaled)
        error = scaled.sub_(values).square_().sum((0, 2))[:, None] * scale.square()
        is_better = error < best_error
        best_error = torch.where(is_better, error, best_error)
        best_scale = torch.where(is_better, scale, best_scale)
        best_values = torch.where(is_better, values.to(torch.int8), best_values)
    return best_values, best_scale[:, 0]


def split_groups(rows: Tensor) -> Tensor:
    """[n, k] -> [4, n, k / 4 rounded up to even]: the columns that meet in one sum below each other."""
    rows = functional.pad(rows, (0, -rows.shape[1] % 8))
    return rows.view(rows.shape[0], -1, 2, 2, 2).permute(2, 4, 0, 1, 3).reshape(4, rows.shape[0], -1)


def join_groups(planes: Tensor) -> Tensor:
    """The inverse of `split_groups`, but for the columns that were added."""
    num_rows = planes.shape[1]
    return planes.reshape(2, 2, num_rows, -1, 2).permute(2, 3, 0, 4, 1).reshape(num_rows, -1)


def bound_groups(values: Tensor, scaled: Tensor) -> None:
    """Move groups of `values` [4, ...] that are over the bound to the points within it nearest `scaled`, in place."""
    positive = values.clamp(min=0).sum(0)
    negative = positive - values.sum(0)
    is_over = (positive > GROUP_BOUND) | (negative > GROUP_BOUND)
    if is_over.any():
        index = is_over.flatten().nonzero()[:, 0]
        wanted = scaled.flatten(1)[:, index]
        values.flatten(1)[:, index] = project(wanted.clamp(min=0)) - project(wanted.clamp(max=0).neg())


def project(wanted: Tensor) -> Tensor:
    """The nearest whole numbers >= 0 to each column of `wanted` [4, n] whose sum is at most GROUP_BOUND.

    All members of a group that is over give way by the same amount, found as in Duchi et al. 2008 (projection onto the
    simplex); what rounding down leaves of the bound goes to those that lost most.
    """
    sums = wanted.sort(dim=0, descending=True).values.cumsum(0)
    counts = torch.arange(1, len(wanted) + 1, dtype=wanted.dtype, device=wanted.device)[:, None]
    threshold = ((sums - GROUP_BOUND) / counts).amax(0).clamp(min=0)
    values = (wanted - threshold).clamp(min=0).floor()
    for _ in range(len(wanted)):
        lost, index = (wanted - values).max(0, keepdim=True)
        has_room = (values.sum(0, keepdim=True) < GROUP_BOUND) & (lost > 0.5)
        values.scatter_add_(0, index, has_room.to(values.dtype))
    return values
