"""The two orders of a KV cache: what is stored is found again, and both hold the same."""

import pytest
import torch

from runtime.kv_cache.blocks import BLOCK_SIZE
from runtime.kv_cache.layout import KVLayout, load_rows, store_rows
from tests.kernels.kernel_cases import random_tensor
from tests.tolerances import KV_CACHE_TOLERANCES, check_close

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8]
HEAD_DIMS = [8, 10, 12, 20, 64, 80, 128]
SLOTS = torch.tensor([33, 18, 34, 17, 16, 31, 35])
"""Of the first blocks of a cache of four: some of each, in no order."""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_both_orders_hold_the_same(head_dim: int, dtype: torch.dtype) -> None:
    """Keys and values alike; all that nobody wrote stays as it was."""
    rows = random_tensor(len(SLOTS), 3, head_dim)
    found = []
    for order in ("panels", "rows"):
        cache = KVLayout(2, 3, head_dim, dtype, order).allocate(4, CPU)
        for kind in range(2):
            store_rows(cache[1, :, kind], SLOTS, rows + kind, is_value=kind == 1)
        assert not cache[0].any() and not cache[1, 0].any() and not cache[1, 3].any()
        for kind in range(2):
            loaded = load_rows(cache[1, :, kind], torch.arange(4), 4 * BLOCK_SIZE, head_dim, is_value=kind == 1)
            check_close(loaded[SLOTS], rows + kind, tolerance=KV_CACHE_TOLERANCES[dtype])
            unwritten = torch.ones(4 * BLOCK_SIZE, dtype=torch.bool).index_fill(0, SLOTS, False)
            assert not loaded[unwritten].any()
            found.append(loaded)
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_rows_lie_as_kernels_read_them(head_dim: int, dtype: torch.dtype) -> None:
    """A token's row is one piece, and behind a block's rows are scales, from an address that any type may have."""
    layout = KVLayout(2, 3, head_dim, dtype, "rows")
    cache = layout.allocate(4, CPU)
    assert cache.stride()[-2:] == (head_dim, 1)
    assert cache.nbytes == 4 * layout.block_bytes
    if dtype == torch.int8:
        assert layout.head_size % 16 == 0
        assert layout.head_size >= BLOCK_SIZE * (head_dim + 4)
    else:
        assert layout.head_size == BLOCK_SIZE * head_dim
        store_rows(cache[1, :, 0], torch.tensor([2 * BLOCK_SIZE + 5]), random_tensor(1, 3, head_dim), is_value=False)
        assert torch.equal(cache[1, 2, 0, :, 5], random_tensor(1, 3, head_dim)[0].to(dtype))


def test_scales_take_no_more_rows_than_they_fill() -> None:
    """One of 64 bytes and more; two of 32."""
    found = [KVLayout(1, 1, head_dim, torch.int8, "rows").head_shape for head_dim in (32, 64, 128)]
    assert found == [(18, 32), (17, 64), (17, 128)]
