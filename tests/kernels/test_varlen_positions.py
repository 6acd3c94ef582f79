"""Scores by distance (DeBERTa's, and Shaw's) in packed attention: against its reference, and that against a loop."""

from typing import Any

import pytest
import torch
from torch import Tensor

from runtime.ops.varlen_attention import OP
from tests.kernels.emulated import COMPILED
from tests.kernels.kernel_cases import (
    DTYPES,
    IMPLEMENTATIONS,
    KERNEL_TOLERANCES,
    borders,
    find_kernels,
    random_tensor,
    run_kernel,
)
from tests.tolerances import check_close

AT_BORDERS = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 193, 270]
"""Tokens around the ends of tiles of queries and groups of keys (16), of blocks of keys (64) and of queries (128)."""
REACH = 280
DISTANCES = torch.arange(1 - REACH, REACH)
BUCKETS: dict[str, Tensor] = {
    "each": DISTANCES + REACH - 1,
    "falling": (REACH - 1) - DISTANCES,
    "clamped": DISTANCES.clamp(-9, 9) + 9,
    # Exact ones near by, then ever wider ones.
    "growing": (DISTANCES.sign() * torch.where(DISTANCES.abs() <= 20, DISTANCES.abs(), 20 + DISTANCES.abs() // 20))
    + 33,
    # Two rows from one distance to the next: more than a vector holds.
    "skipping": 2 * (DISTANCES + REACH - 1),
}
TABLES = {"both": (True, True), "of queries": (True, False), "of keys": (False, True)}


def make_arguments(
    seqlens: list[int], num_heads: int, head_dim: int, dtype: torch.dtype, buckets: str, tables: str, table_heads: int
) -> tuple[Any, ...]:
    """All arguments of the op; q, k and v are slices of one tensor."""
    fused = random_tensor(sum(seqlens), 3 * num_heads * head_dim, dtype=dtype)
    q, k, v = (part.view(-1, num_heads, head_dim) for part in fused.chunk(3, -1))
    rows = BUCKETS[buckets].int()
    shape = (int(rows.max()) + 1, table_heads, head_dim)
    made = [random_tensor(*shape, dtype=dtype, seed=seed) if has else None for seed, has in enumerate(TABLES[tables])]
    cu_seqlens, longest = borders(seqlens), max(seqlens)
    args = (q, k, v, cu_seqlens, cu_seqlens, longest, longest, (3 * head_dim) ** -0.5)
    return (*args, False, -1, None, None, *made, rows)


def check_attention(implementation: str, args: tuple[Any, ...]) -> None:
    q = args[0]
    actual = run_kernel(find_kernels(implementation)[OP], tuple(q.shape), q.dtype, *args)
    check_close(actual, OP(*args), tolerance=KERNEL_TOLERANCES[q.dtype], what="attention")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("buckets", BUCKETS)
def test_every_kind_of_buckets(implementation: str, buckets: str, tables: str, dtype: torch.dtype) -> None:
    check_attention(implementation, make_arguments(AT_BORDERS, 2, 16, dtype, buckets, tables, 2))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_heads", "head_dim", "table_heads"), [(3, 20, 3), (3, 64, 1), (1, 80, 1), (2, 128, 2)])
def test_every_head_size(
    implementation: str, num_heads: int, head_dim: int, table_heads: int, dtype: torch.dtype
) -> None:
    seqlens = [3, 1, 150, 17]
    check_attention(implementation, make_arguments(seqlens, num_heads, head_dim, dtype, "growing", "both", table_heads))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_together_with_masks_and_groups(implementation: str, dtype: torch.dtype) -> None:
    """A causal window, a bias, keys that are not seen, and two heads of queries to one of keys."""
    q, k, v, *rest = make_arguments([70, 200, 5], 4, 16, dtype, "growing", "both", 4)
    num_keys = torch.tensor([61, 200, 0], dtype=torch.int32)
    args = (q, k[:, ::2], v[:, ::2], *rest[:5], True, 90, random_tensor(4, 2 * REACH - 1), num_keys, *rest[9:])
    check_attention(implementation, args)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_more_keys_than_queries(implementation: str) -> None:
    q, k, v, *_, by_key, by_query, rows = make_arguments([90], 2, 16, torch.float32, "growing", "both", 2)
    borders_q, borders_k = borders([20, 3]), borders([80, 10])
    args = (q[:23], k, v, borders_q, borders_k, 20, 80, 0.25, False, -1, None, None, by_key, by_query, rows)
    check_attention(implementation, args)


@pytest.mark.parametrize("implementation", COMPILED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_alone_as_in_any_batch(implementation: str, dtype: torch.dtype) -> None:
    """Bit for bit."""
    kernel = find_kernels(implementation)[OP]
    q, k, v, *_, scale, causal, window, bias, num_keys, by_key, by_query, rows = make_arguments(
        AT_BORDERS, 2, 20, dtype, "growing", "both", 2
    )
    cu_seqlens = borders(AT_BORDERS)
    options = (scale, causal, window, bias, num_keys, by_key, by_query, rows)
    args = (q, k, v, cu_seqlens, cu_seqlens, max(AT_BORDERS), max(AT_BORDERS), *options)
    batch = run_kernel(kernel, tuple(q.shape), dtype, *args)
    for start, length in zip(cu_seqlens.tolist(), AT_BORDERS, strict=False):
        place = slice(start, start + length)
        own = (q[place], k[place], v[place], borders([length]), borders([length]), length, length, *options)
        assert torch.equal(batch[place], run_kernel(kernel, (length, 2, 20), dtype, *own))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("length", "num_rows"), [(281, 67), (280, 66)])
def test_buckets_that_do_not_fit_are_refused(implementation: str, length: int, num_rows: int) -> None:
    *args, by_key, by_query, rows = make_arguments([length], 1, 16, torch.float32, "growing", "both", 1)
    wrong = r"281 tokens is over the 280|sequences are longer|index 66 is out of bounds"
    with pytest.raises((ValueError, IndexError, RuntimeError), match=wrong):
        find_kernels(implementation)[OP](
            *args, by_key[:num_rows], by_query[:num_rows], rows, out=torch.empty(length, 1, 16)
        )


def test_reference_is_the_formula() -> None:
    q, k, v, *_, scale, _, _, _, _, by_key, by_query, rows = make_arguments(
        [7], 2, 16, torch.float32, "clamped", "both", 2
    )
    scores = torch.empty(2, 7, 7)
    for query in range(7):
        for key in range(7):
            row = int(rows[REACH - 1 + key - query])
            parts = q[query] * k[key] + q[query] * by_key[row] + k[key] * by_query[row]
            scores[:, query, key] = parts.sum(-1) * scale
    expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
    cu_seqlens = borders([7])
    options = {"position_k": by_key, "position_q": by_query, "buckets": rows}
    check_close(OP(q, k, v, cu_seqlens, cu_seqlens, 7, 7, scale, **options), expected)
