"""Packed attention by Triton: against its reference, bit for bit the same in any batch, and compiled."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from runtime.backends.cuda.varlen_attention import choose_tile, varlen_attention
from runtime.ops.varlen_attention import OP
from tests.cuda.cuda_cases import DTYPES, check_compiled, check_kernel, every_capability, run_on
from tests.kernels.kernel_cases import borders, random_tensor

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
HEAD_DIMS = [32, 40, 64, 80, 96, 128, 256]
REACH = 300
SEQLENS = [3, 17, 70, 1]
NUM_KEYS = torch.tensor([0, 5, 70, 1], dtype=torch.int32)
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": 20},
    "causal window": {"causal": True, "window": 30},
    "bias": {"bias": True},
    "num_keys": {"num_keys": NUM_KEYS},
    "distances": {"tables": "qk"},
    "distances of keys": {"tables": "k"},
    "distances of queries": {"tables": "q"},
    "all": {"causal": True, "window": 30, "bias": True, "num_keys": NUM_KEYS, "tables": "qk"},
}
QUICK = [("plain", FP32), ("window", FP16), ("bias", FP32), ("num_keys", FP32), ("all", BF16)]


def slow_unless(is_quick: bool) -> Any:
    return () if is_quick else pytest.mark.slow


def make_arguments(
    seqlens: list[int], heads: tuple[int, int], head_dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int, int, float]:
    """q, k and v are slices of one fused tensor."""
    sizes = [number * head_dim for number in (heads[0], heads[1], heads[1])]
    fused = random_tensor(sum(seqlens), sum(sizes), dtype=dtype)
    q, k, v = (part.view(len(part), -1, head_dim) for part in fused.split(sizes, 1))
    cu_seqlens, longest = borders(seqlens), max(seqlens)
    return q, k, v, cu_seqlens, cu_seqlens, longest, longest, head_dim**-0.5


def make_form(name: str, num_heads: int, head_dim: int, dtype: torch.dtype, table_heads: int = 1) -> dict[str, Any]:
    form = dict(FORMS[name])
    tables = form.pop("tables", "")
    if form.pop("bias", False):
        form["bias"] = random_tensor(num_heads, 2 * REACH - 1)
    if tables:
        form["buckets"] = (torch.arange(1 - REACH, REACH).clamp(-40, 40) + 40).int()
    for side in tables:
        form[f"position_{side}"] = random_tensor(81, table_heads, head_dim, dtype=dtype, seed=ord(side))
    return form


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        pytest.param(form, dtype, marks=slow_unless((form, dtype) in QUICK))
        for form, dtype in itertools.product(FORMS, DTYPES)
    ],
    ids=str,
)
def test_every_form(form: str, dtype: torch.dtype, device: torch.device) -> None:
    args = make_arguments(SEQLENS, (2, 1), 32, dtype)
    actual = check_kernel(device, varlen_attention, OP, *args, **make_form(form, 2, 32, dtype, table_heads=2))
    if "num_keys" in FORMS[form]:
        assert not actual[:3].any(), "a query that sees no key"


@pytest.mark.parametrize(
    ("head_dim", "form", "dtype"),
    [
        pytest.param(
            head_dim,
            form,
            dtype,
            marks=slow_unless((head_dim, form, dtype) in [(80, "plain", FP16), (256, "plain", FP32)]),
        )
        for head_dim, form, dtype in itertools.product(HEAD_DIMS, ("plain", "all"), (FP32, FP16))
    ],
    ids=str,
)
def test_every_head_size(head_dim: int, form: str, dtype: torch.dtype, device: torch.device) -> None:
    args = make_arguments([9, 33, 2], (1, 1), head_dim, dtype)
    options = make_form(form, 1, head_dim, dtype) | ({"num_keys": NUM_KEYS[:3]} if form == "all" else {})
    check_kernel(device, varlen_attention, OP, *args, **options)


@pytest.mark.parametrize("dtype", [FP32, pytest.param(FP16, marks=pytest.mark.slow)], ids=str)
def test_lengths_around_every_border(dtype: torch.dtype, device: torch.device) -> None:
    seqlens = [1, 15, 16, 17, 63, 64, 65, 129]
    check_kernel(device, varlen_attention, OP, *make_arguments(seqlens, (1, 1), 16, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["causal", "distances"])
@pytest.mark.parametrize("seqlens", [[1] * 70, [270, 1, 1, 1, 300], [1 + index % 7 // 3 for index in range(300)]])
def test_more_sequences_and_longer_ones(seqlens: list[int], form: str, device: torch.device) -> None:
    args = make_arguments(seqlens, (1, 1), 16, FP16)
    check_kernel(device, varlen_attention, OP, *args, **make_form(form, 1, 16, FP16))


def test_more_keys_than_queries_and_fewer(device: torch.device) -> None:
    """The last query belongs to the last key; those that stand before all keys get 0."""
    q, (k, v) = random_tensor(3 + 1 + 40, 2, 16), random_tensor(2, 50 + 4 + 21, 2, 16)
    args = (q, k, v, borders([3, 1, 40]), borders([50, 4, 21]), 40, 50, 0.25, True)
    actual = check_kernel(device, varlen_attention, OP, *args)
    assert not actual[4:23].any() and actual[23:].all()


def test_bias_that_forbids_every_key(device: torch.device) -> None:
    bias = torch.zeros(2, 2 * 80 - 1)
    bias[1] = -torch.inf
    actual = check_kernel(device, varlen_attention, OP, *make_arguments([5, 70], (2, 2), 16, FP32), bias=bias)
    assert not actual[:, 1].any()


@pytest.mark.parametrize("lowest", [-80.0, -1e32])
def test_masked_keys_count_for_nothing_beside_very_low_scores(lowest: float, device: torch.device) -> None:
    """The first key, all that the first query sees, has a score of `lowest`; values behind it are huge."""
    q, k = torch.full((4, 1, 16), lowest), torch.ones(4, 1, 16)
    v = torch.tensor([1.0, 1e38, 1e38, 1e38])[:, None, None].expand(4, 1, 16).contiguous()
    args = (q, k, v, borders([4]), borders([4]), 4, 4, 1 / 16, True)
    assert (run_on(device, varlen_attention, (4, 1, 16), FP32, *args)[0] == 1).all()


@pytest.mark.parametrize("form", ["plain", pytest.param("distances", marks=pytest.mark.slow)])
def test_alone_as_in_a_batch(form: str, device: torch.device) -> None:
    """Bit for bit in the interpreter, though the others and the head beside are NaN, and tiles are smaller."""
    seqlens, kept = [140, 33, 70], slice(140, 173)
    q, k, v, cu_seqlens, _, longest, _, scale = make_arguments(seqlens, (2, 2), 16, FP32)
    options = make_form(form, 2, 16, FP32)
    spoilt = [torch.full_like(x, torch.nan) for x in (q, k, v)]
    for place, x in zip(spoilt, (q, k, v), strict=True):
        place[kept, 0] = x[kept, 0]
    args = (*spoilt, cu_seqlens, cu_seqlens, longest, longest, scale)
    together = run_on(device, varlen_attention, tuple(q.shape), FP32, *args, **options)
    args = (*(x[kept] for x in (q, k, v)), borders([33]), borders([33]), 33, 33, scale)
    alone = run_on(device, varlen_attention, (33, 2, 16), FP32, *args, **options)
    tolerance = 0.0 if device.type == "cpu" else 1e-6
    torch.testing.assert_close(together[kept, 0], alone[:, 0], rtol=tolerance, atol=tolerance)
    assert together[:140].isnan().all() and together[kept, 1].isnan().all()


def test_nan_shows(device: torch.device) -> None:
    q, k, v, *rest = make_arguments([6], (1, 1), 16, FP32)
    k = k.clone()
    k[3, 0, 2] = torch.nan
    actual = run_on(device, varlen_attention, (6, 1, 16), FP32, q, k, v, *rest)
    assert actual.isnan().all()


@pytest.mark.parametrize("table", ["bias", "buckets"])
def test_sequence_over_the_reach_is_refused(table: str) -> None:
    args = make_arguments([5], (1, 1), 16, FP32)
    form = {"bias": torch.zeros(1, 7)} if table == "bias" else {"buckets": torch.zeros(7, dtype=torch.int32)}
    with pytest.raises(ValueError, match="5 tokens is over the 4"):
        varlen_attention(*args, **form, out=torch.empty(5, 1, 16))


def test_keys_are_taken_in_the_same_steps_whatever_the_lengths() -> None:
    for head_dim, dtype, by_distance in itertools.product(HEAD_DIMS, DTYPES, (False, True)):
        assert len({choose_tile(head_dim, dtype, False, by_distance, longest).columns for longest in (1, 40, 900)}) == 1


BUILD_FORMS = ["plain", "causal", "bias", "distances", "all"]
BUILDS = list(itertools.product(BUILD_FORMS, [32, 64, 80, 128, 256], (16, 64, 128), (FP32, FP16)))
"""By the longest sequence, each has tiles of its own. To BF16 belong those of FP16."""
QUICK_BUILDS = [("plain", 64, 128, FP16)]


@every_capability
@pytest.mark.parametrize(
    ("form", "head_dim", "longest", "dtype"),
    [pytest.param(*build, marks=slow_unless(build in QUICK_BUILDS)) for build in BUILDS],
    ids=str,
)
def test_compiles(form: str, head_dim: int, longest: int, dtype: torch.dtype, capability: int) -> None:
    args = make_arguments([3, longest, 2, 1], (2, 1), head_dim, dtype)
    check_compiled(capability, varlen_attention, OP, *args, **make_form(form, 2, head_dim, dtype))
