"""Packed attention against its reference, and the reference against plain dense attention."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from runtime.ops.varlen_attention import OP
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
