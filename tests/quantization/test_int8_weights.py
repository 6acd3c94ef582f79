"""Weights as int8: within the bound that 16-bit sums need, and as near to the weights as the bound allows."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from runtime.quantization.scheme import LinearScheme
from runtime.quantization.weights import (
    GROUP_BOUND,
    join_groups,
    project,
    quantize_weight,
    split_groups,
)
from tests.kernels.emulated import COMPILED, load_compiled

GROUPS = ((0, 1, 4, 5), (2, 3, 6, 7))

# Weights near the smallest fp32 are made 0: their scale would be smaller than that.
finite = st.floats(-100, 100, width=32).map(lambda weight: weight if abs(weight) > 1e-30 else 0.0)
weights = arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 27)), elements=finite).map(
    torch.from_numpy
)


def round_plainly(weight: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Values and scale [out_features, 1] of rounding to the nearest with the largest weight at `limit`."""
    scale = weight.abs().amax(1, keepdim=True) / limit
    scale = torch.where(scale > 0, scale, 1.0)
    return (weight / scale).round(), scale


def row_errors(weight: Tensor, found: Tensor) -> Tensor:
    return (found.double() - weight.double()).square().sum(1)


def is_within_bound(values: Tensor) -> Tensor:
    """For each row, whether all its groups are; written out column by column."""
    is_within = torch.ones(len(values), dtype=torch.bool)
    for start in range(0, values.shape[1], 8):
        for group in GROUPS:
            chosen = values[:, [start + column for column in group if start + column < values.shape[1]]].int()
            is_within &= (chosen.clamp(min=0).sum(1) <= GROUP_BOUND) & (chosen.clamp(max=0).sum(1) >= -GROUP_BOUND)
    return is_within


@given(weights, st.booleans())
@settings(deadline=None)
def test_values_and_scales(weight: Tensor, overflow_free: bool) -> None:
    quantized = quantize_weight(weight, scheme=None, overflow_free=overflow_free)
    assert (quantized.values.dtype, quantized.values.shape) == (torch.int8, weight.shape)
    assert (quantized.scale.dtype, quantized.scale.shape) == (torch.float32, weight.shape[:1])
    assert (quantized.scale > 0).all() and quantized.scale.isfinite().all()
    assert quantized.values.abs().max() <= 127
    assert not quantized.values[weight.abs().amax(1) == 0].any()


@given(weights)
@settings(deadline=None)
def test_overflow_free_weights_are_within_the_bound(weight: Tensor) -> None:
    assert is_within_bound(quantize_weight(weight, scheme=None, overflow_free=True).values).all()


@given(weights, st.sampled_from([32, 64, 127]))
@settings(deadline=None)
def test_no_worse_than_rounding_plainly(weight: Tensor, limit: int) -> None:
    """To +-32, which is always within the bound, and to +-64 and +-127 in the rows where that happens to be."""
    values, scale = round_plainly(weight, limit)
    plain = row_errors(weight, values * scale)
    errors = row_errors(weight, quantize_weight(weight, scheme=None, overflow_free=True).dequantize())
    allowed = plain * (1 + 1e-4) + 1e-9 * weight.double().square().sum(1)
    assert (errors <= allowed)[is_within_bound(values)].all()


@given(weights)
@settings(deadline=None)
def test_without_the_bound_the_whole_range_is_used(weight: Tensor) -> None:
    values, _ = round_plainly(weight, 127)
    quantized = quantize_weight(weight, scheme=None, overflow_free=False)
    assert (quantized.values - values).abs().max() <= 1  # a tie may fall either way
    assert (quantized.values.abs().amax(1) == 127)[weight.abs().amax(1) > 0].all()


def test_smooth_is_multiplied_into_the_columns() -> None:
    weight, smooth = torch.randn(6, 16), torch.rand(16) + 0.5
    quantized = quantize_weight(weight, scheme=LinearScheme(smooth), overflow_free=True)
    expected = quantize_weight(weight * smooth, scheme=None, overflow_free=True)
    assert torch.equal(quantized.values, expected.values) and torch.equal(quantized.scale, expected.scale)


@given(st.lists(st.floats(0, 127, width=32), min_size=4, max_size=4))
@settings(deadline=None, max_examples=50)
def test_projection_is_the_nearest_point(wanted: list[float]) -> None:
    """Against all whole points within 2 of what the continuous answer rounds to."""
    target = torch.tensor(wanted)[:, None]
    found = project(target)
    assert found.sum() <= GROUP_BOUND and (found >= 0).all()
    steps = torch.tensor(list(itertools.product(range(-2, 3), repeat=4))).float().T
    near = found + steps
    is_allowed = (near >= 0).all(0) & (near.sum(0) <= GROUP_BOUND)
    least = (near - target).square().sum(0)[is_allowed].min()
    assert (found - target).square().sum() <= least + 1e-3


def test_groups_are_those_of_the_kernel() -> None:
    rows = torch.arange(16.0)[None]
    planes = split_groups(rows)
    assert [planes[:, 0, index].tolist() for index in range(2)] == [list(group) for group in GROUPS]
    assert torch.equal(join_groups(planes), rows)


@pytest.mark.parametrize("rounding", ["torch", *COMPILED])
@pytest.mark.parametrize("overflow_free", [True, False])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 1e30])
def test_what_has_no_scale_is_refused(wrong: float, overflow_free: bool, rounding: str) -> None:
    """It was rounded to zeros. The last one is finite, but its error squared is not."""
    weight = torch.ones(3, 20)
    weight[1, 7] = wrong
    weight[1, 3] = wrong * 0.7
    round_channels = None if rounding == "torch" else load_compiled(rounding).round_channels
    with pytest.raises(ValueError, match="weights of 1 of 3 output channels are not finite"):
        quantize_weight(weight, scheme=None, overflow_free=overflow_free, round_channels=round_channels)


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("overflow_free", [True, False])
@pytest.mark.parametrize(("shape", "spread"), [((1, 1), 1.0), ((5, 27), 1.0), ((40, 64), 1e-3), ((33, 130), 50.0)])
def test_compiled_rounding_is_torchs(shape: tuple[int, int], spread: float, overflow_free: bool, isa: str) -> None:
    """But for scales that err the same to the last bits: then either may be taken."""
    library = load_compiled(isa)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(spread)
    weight[0] = 0
    weight[-1, -1] *= 100  # a channel whose other weights nearly vanish beside one
    options = {"scheme": None, "overflow_free": overflow_free}
    expected = quantize_weight(weight, **options)
    found = quantize_weight(weight, **options, round_channels=library.round_channels)
    same = found.scale == expected.scale
    assert same.float().mean() > 0.9
    assert torch.equal(found.values[same], expected.values[same])
    mine, theirs = (row_errors(weight, each.dequantize()) for each in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=0.0)
    if overflow_free:
        planes = split_groups(found.values.float())
        assert planes.clamp(min=0).sum(0).max() <= GROUP_BOUND
        assert planes.clamp(max=0).sum(0).min() >= -GROUP_BOUND
