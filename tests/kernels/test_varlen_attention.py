"""Packed attention against its reference, and the reference against plain dense attention."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from runtime.ops.varlen_attention import OP
from tests.kernels.emulated import COMPILED
from tests.kernels.kernel_cases import (
    DTYPES,
    IMPLEMENTATIONS,
    KERNEL_TOLERANCES,
    SEQLENS,
    borders,
    find_kernels,
    random_tensor,
    run_kernel,
)
from tests.tolerances import check_close

HEADS = [(3, 32), (1, 64), (2, 80), (1, 128), (1, 256)]
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": 3},
    "causal window": {"causal": True, "window": 2},
}
AT_BORDERS = [1, 2, 15, 16, 17, 11, 12, 13, 31, 32, 33, 127, 128, 129, 255, 256, 257, 290]
"""Tokens around the ends of tiles of queries (16), of keys (12, 32), and of blocks of them (128, 256)."""


def make_qkv(num_tokens: int, num_heads: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Slices of one fused tensor, as fuse_qkv makes them."""
    fused = random_tensor(num_tokens, 3 * num_heads * head_dim, dtype=dtype)
    q, k, v = (part.view(num_tokens, num_heads, head_dim) for part in fused.chunk(3, -1))
    return q, k, v


def check_attention(
    implementation: str, seqlens: list[int], num_heads: int, head_dim: int, dtype: torch.dtype, **form: Any
) -> None:
    q, k, v = make_qkv(sum(seqlens), num_heads, head_dim, dtype)
    cu_seqlens, longest = borders(seqlens), max(seqlens)
    args = (q, k, v, cu_seqlens, cu_seqlens, longest, longest, head_dim**-0.5)
    options = (form.get("causal", False), form.get("window", -1), form.get("bias"))
    actual = run_kernel(find_kernels(implementation)[OP], tuple(q.shape), dtype, *args, *options)
    check_close(actual, OP(*args, *options), tolerance=KERNEL_TOLERANCES[dtype], what="attention")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SEQLENS)
def test_every_shape(implementation: str, name: str, dtype: torch.dtype) -> None:
    check_attention(implementation, SEQLENS[name], 2, 32, dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_heads", "head_dim"), HEADS)
def test_every_head_size(implementation: str, num_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    check_attention(implementation, SEQLENS["mixed"], num_heads, head_dim, dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form(implementation: str, form: str, with_bias: bool, dtype: torch.dtype) -> None:
    bias = random_tensor(2, 2 * 64 - 1) if with_bias else None
    check_attention(implementation, SEQLENS["mixed"], 2, 32, dtype, bias=bias, **FORMS[form])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [20, 32, 64, 80, 128])
def test_lengths_around_every_border(implementation: str, head_dim: int, dtype: torch.dtype) -> None:
    check_attention(implementation, AT_BORDERS, 1, head_dim, dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("causal", "window"), [(False, -1), (True, -1), (False, 100), (True, 130)])
def test_forms_over_several_blocks(implementation: str, causal: bool, window: int, dtype: torch.dtype) -> None:
    bias = random_tensor(2, 2 * 600 - 1)
    check_attention(implementation, [530, 270, 3], 2, 32, dtype, causal=causal, window=window, bias=bias)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.sampled_from(sorted(FORMS)), st.integers(1, 3))
@settings(deadline=None, max_examples=50)
def test_any_lengths(implementation: str, seqlens: list[int], form: str, num_heads: int) -> None:
    check_attention(implementation, seqlens, num_heads, 8, torch.float32, **FORMS[form])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_more_keys_than_queries(implementation: str) -> None:
    """As with a cache: the last query belongs to the last key."""
    q = random_tensor(3 + 1, 2, 16)
    k, v = random_tensor(5 + 4, 2, 16, seed=1), random_tensor(5 + 4, 2, 16, seed=2)
    args = (q, k, v, borders([3, 1]), borders([5, 4]), 3, 5, 0.25, True, -1, None)
    actual = run_kernel(find_kernels(implementation)[OP], (4, 2, 16), torch.float32, *args)
    check_close(actual, OP(*args), tolerance=KERNEL_TOLERANCES[torch.float32])
    allowed = torch.ones(3, 5, dtype=torch.bool).tril(2)
    check_close(actual[:3], dense_attention(q[:3], k[:5], v[:5], 0.25, allowed))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(6, 2), (4, 1)])
def test_heads_that_share_keys(implementation: str, num_heads: int, num_kv_heads: int, dtype: torch.dtype) -> None:
    seqlens = [17, 17, 140, 1]
    fused = random_tensor(sum(seqlens), (num_heads + 2 * num_kv_heads) * 32, dtype=dtype)
    parts = fused.split([num_heads * 32, num_kv_heads * 32, num_kv_heads * 32], -1)
    q, k, v = (part.view(sum(seqlens), -1, 32) for part in parts)
    args = (q, k, v, borders(seqlens), borders(seqlens), 140, 140, 32**-0.5, True, -1, None)
    actual = run_kernel(find_kernels(implementation)[OP], tuple(q.shape), dtype, *args)
    check_close(actual, OP(*args), tolerance=KERNEL_TOLERANCES[dtype], what="attention")
    rows, group = slice(34, 174), num_heads // num_kv_heads
    alone = (q[rows].float(), *(x[rows].float().repeat_interleave(group, 1) for x in (k, v)))
    expected = dense_attention(*alone, 32**-0.5, torch.ones(140, 140, dtype=torch.bool).tril())
    check_close(actual[rows].float(), expected, tolerance=KERNEL_TOLERANCES[dtype])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["plain", "causal", "window"])
def test_only_the_first_keys_are_seen(implementation: str, form: str, dtype: torch.dtype) -> None:
    """All queries are there; those of a sequence whose keys are all unseen get 0."""
    seqlens, num_keys = [17, 32, 300, 32, 5, 1], torch.tensor([17, 9, 270, 1, 0, 1], dtype=torch.int32)
    q, k, v = make_qkv(sum(seqlens), 2, 32, dtype)
    cu_seqlens, options = borders(seqlens), (FORMS[form].get("causal", False), FORMS[form].get("window", -1), None)
    args = (q, k, v, cu_seqlens, cu_seqlens, 300, 300, 32**-0.5, *options, num_keys)
    actual = run_kernel(find_kernels(implementation)[OP], tuple(q.shape), dtype, *args)
    check_close(actual, OP(*args), tolerance=KERNEL_TOLERANCES[dtype], what="attention")
    assert not actual[-6:-1].any()
    if form == "plain":
        rows = slice(17, 49)
        seen = torch.ones(32, 32, dtype=torch.bool).tril(0)[8].expand(32, 32)
        expected = dense_attention(*(x[rows].float() for x in (q, k, v)), 32**-0.5, seen)
        check_close(actual[rows].float(), expected, tolerance=KERNEL_TOLERANCES[dtype])


@pytest.mark.parametrize("implementation", COMPILED)
@pytest.mark.parametrize("count", [-1, 6])
def test_more_keys_than_there_are_is_refused(implementation: str, count: int) -> None:
    q, k, v = make_qkv(5, 1, 16, torch.float32)
    num_keys = torch.tensor([count], dtype=torch.int32)
    with pytest.raises(IndexError, match="fewer keys than num_keys says"):
        find_kernels(implementation)[OP](
            q, k, v, borders([5]), borders([5]), 5, 5, 1.0, num_keys=num_keys, out=torch.empty_like(q)
        )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_query_that_sees_no_key_gets_zero(implementation: str, dtype: torch.dtype) -> None:
    """Causal, and more queries than keys: the first ones stand before all keys. The others are as ever."""
    q, (k, v) = random_tensor(40, 2, 16, dtype=dtype), random_tensor(2, 21, 2, 16, dtype=dtype)
    args = (q, k, v, borders([40]), borders([21]), 40, 21, 0.25, True, -1, None)
    actual = run_kernel(find_kernels(implementation)[OP], (40, 2, 16), dtype, *args)
    assert not actual[:19].any()
    check_close(actual, OP(*args), tolerance=KERNEL_TOLERANCES[dtype])
    check_close(actual[19], v[0], tolerance=KERNEL_TOLERANCES[dtype])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_that_forbids_every_key(implementation: str, dtype: torch.dtype) -> None:
    q, k, v = make_qkv(5, 2, 16, dtype)
    bias = torch.zeros(2, 9)
    bias[1] = -torch.inf
    args = (q, k, v, borders([5]), borders([5]), 5, 5, 0.25, False, -1, bias)
    actual = run_kernel(find_kernels(implementation)[OP], (5, 2, 16), dtype, *args)
    assert not actual[:, 1].any()
    check_close(actual, OP(*args), tolerance=KERNEL_TOLERANCES[dtype])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lowest", [-80.0, -1e4, -1e20, -1e32])
def test_masked_keys_count_for_nothing_beside_very_low_scores(
    implementation: str, lowest: float, dtype: torch.dtype
) -> None:
    """The first key, all that the first query sees, has a score of `lowest`; values behind it are huge."""
    q, k = torch.full((4, 1, 16), lowest, dtype=dtype), torch.ones(4, 1, 16, dtype=dtype)
    v = torch.tensor([1.0, 1e38, 1e38, 1e38], dtype=dtype)[:, None, None].expand(4, 1, 16).contiguous()
    args = (q, k, v, borders([4]), borders([4]), 4, 4, 1 / 16, True, -1, None)
    actual = run_kernel(find_kernels(implementation)[OP], (4, 1, 16), dtype, *args)
    assert (actual[0] == 1).all()


@pytest.mark.parametrize("implementation", COMPILED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_shows_in_the_queries_that_see_it(implementation: str, dtype: torch.dtype) -> None:
    q, k, v = (x.contiguous() for x in make_qkv(6, 1, 16, dtype))
    k[3, 0, 2] = torch.nan
    args = (q, k, v, borders([6]), borders([6]), 6, 6, 0.25, True, -1, None)
    actual = run_kernel(find_kernels(implementation)[OP], (6, 1, 16), dtype, *args)
    assert actual.isnan().flatten(1).all(1).tolist() == [False] * 3 + [True] * 3
    assert not actual[:3].isnan().any()


@pytest.mark.parametrize("implementation", COMPILED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [20, 32, 64, 80, 128])
def test_alone_as_in_any_batch(implementation: str, head_dim: int, dtype: torch.dtype) -> None:
    """Bit for bit, even where every other sequence, and the head beside, is NaN."""
    kernel, cu_seqlens, longest = find_kernels(implementation)[OP], borders(AT_BORDERS), max(AT_BORDERS)
    starts = cu_seqlens.tolist()
    qkv = [x.contiguous() for x in make_qkv(sum(AT_BORDERS), 2, head_dim, dtype)]
    for kept in range(2):
        rows = [slice(starts[i], starts[i + 1]) for i in range(kept, len(AT_BORDERS), 2)]
        spoilt = [torch.full_like(x, torch.nan) for x in qkv]
        for place, x in itertools.product(rows, range(3)):
            spoilt[x][place, 0] = qkv[x][place, 0]
        args = (cu_seqlens, cu_seqlens, longest, longest, head_dim**-0.5)
        batch = run_kernel(kernel, tuple(qkv[0].shape), dtype, *spoilt, *args)
        for place in rows:
            alone, length = [x[place, :1].contiguous() for x in qkv], place.stop - place.start
            args = (borders([length]), borders([length]), length, length, head_dim**-0.5)
            assert torch.equal(batch[place, :1], run_kernel(kernel, (length, 1, head_dim), dtype, *alone, *args))


def test_reference_is_dense_attention_on_each_sequence() -> None:
    seqlens = [5, 1, 9]
    q, k, v = make_qkv(15, 2, 16, torch.float32)
    cu_seqlens = borders(seqlens)
    actual = OP(q, k, v, cu_seqlens, cu_seqlens, 9, 9, 0.25)
    expected = [
        dense_attention(*parts, 0.25, None)
        for parts in zip(q.split(seqlens), k.split(seqlens), v.split(seqlens), strict=True)
    ]
    check_close(actual, torch.cat(expected))


def test_reference_adds_the_bias_by_distance() -> None:
    q, k, v = make_qkv(4, 1, 16, torch.float32)
    bias = random_tensor(1, 7)
    rows = [[bias[0, 3 + key - query].item() for key in range(4)] for query in range(4)]
    cu_seqlens = borders([4])
    actual = OP(q, k, v, cu_seqlens, cu_seqlens, 4, 4, 0.25, False, -1, bias)
    check_close(actual, dense_attention(q, k, v, 0.25, torch.tensor(rows)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_sequence_over_the_reach_of_the_bias_is_refused(implementation: str) -> None:
    q, k, v = make_qkv(5, 1, 16, torch.float32)
    cu_seqlens = borders([5])
    with pytest.raises((ValueError, IndexError), match=r"5 tokens is over the 4|sequences are longer"):
        find_kernels(implementation)[OP](
            q, k, v, cu_seqlens, cu_seqlens, 5, 5, 1.0, bias=torch.zeros(1, 7), out=torch.empty_like(q)
        )


def dense_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
    return functional.scaled_dot_product_attention(*heads_first, mask, scale=scale)[0].transpose(0, 1)
