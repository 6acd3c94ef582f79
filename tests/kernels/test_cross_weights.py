"""How much tokens look at their sources, which attention keeps to itself: against dense attention, sequence by
sequence."""

import pytest
import torch
from torch import Tensor

from runtime.kv_cache.blocks import BLOCK_SIZE
from runtime.kv_cache.layout import KVLayout, load_rows
from runtime.ops import cross_weights
from tests.kernels.kernel_cases import KERNEL_TOLERANCES, borders, random_tensor
from tests.kernels.paged_scenes import LAYER, REFERENCE, Look, Scene, make_scene
from tests.tolerances import check_close

NUM_HEADS, HEAD_DIM, SCALE = 4, 24, 0.3
SOURCES = [50, 17, 0, 16, 3]
LOOKS: list[Look] = [(0, 1), (0, 1), (1, 5), (2, 2), (3, 1), (4, 3)]
"""Two beams of one source, a target of several tokens, one whose source is empty."""
ROWS = [0, 1, 3, 6, 7, 9, 11]
"""Tokens that are asked about: none of some sequences, several of others."""
HEADS = [3, 1]
OWNERS = [seq for seq, count in LOOKS for _ in range(count)]


def make_sources(cache_dtype: torch.dtype, stale: float = 0.0) -> Scene:
    scene = make_scene(SOURCES, (NUM_HEADS, NUM_HEADS), HEAD_DIM, cache_dtype=cache_dtype, stale=stale)
    scene.store(REFERENCE)
    return scene


def make_queries(dtype: torch.dtype = torch.float32) -> Tensor:
    return random_tensor(len(OWNERS), NUM_HEADS, HEAD_DIM, dtype=dtype)


def ask(scene: Scene, q: Tensor, looks: list[Look], rows: list[int]) -> Tensor:
    seqs = [seq for seq, _ in looks]
    lengths = [SOURCES[seq] for seq in seqs]
    args = (q, scene.cache, LAYER, scene.make_table(seqs, lengths), borders([count for _, count in looks]))
    return cross_weights.OP(*args, torch.tensor(lengths).int(), torch.tensor(rows, dtype=torch.long), HEADS, SCALE)


def look(scene: Scene, q: Tensor, row: int) -> Tensor:
    """One token's weights over its own source, dense."""
    seq = OWNERS[row]
    table = scene.make_table([seq], [SOURCES[seq]])[0]
    k = load_rows(scene.cache[LAYER, :, 0], table, SOURCES[seq], HEAD_DIM, is_value=False)
    return torch.einsum("hd,khd->hk", q[row].float(), k)[HEADS].mul(SCALE).softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_weights_are_those_of_dense_attention(cache_dtype: torch.dtype, dtype: torch.dtype) -> None:
    scene, q = make_sources(cache_dtype), make_queries(dtype)
    found = ask(scene, q, LOOKS, ROWS)
    assert found.dtype == torch.float32 and found.shape[:2] == (len(ROWS), len(HEADS))
    for weights, row in zip(found, ROWS, strict=True):
        length = SOURCES[OWNERS[row]]
        assert not weights[:, length:].any(), "behind the source's end"
        if length:
            check_close(weights[:, :length], look(scene, q, row), tolerance=KERNEL_TOLERANCES[torch.float32])


def test_together_as_alone() -> None:
    scene, q = make_sources(torch.float32), make_queries()
    together = ask(scene, q, LOOKS, ROWS)
    for weights, row in zip(together, ROWS, strict=True):
        seq = OWNERS[row]
        alone = ask(scene, q[row : row + 1], [(seq, 1)], [0])[0]
        check_close(alone, weights[:, : alone.shape[1]], tolerance=KERNEL_TOLERANCES[torch.float32])


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.int8], ids=str)
def test_what_nobody_wrote_does_not_matter(cache_dtype: torch.dtype) -> None:
    clean, spoilt = (make_sources(cache_dtype, stale=stale) for stale in (0.0, torch.nan))
    found = [ask(scene, make_queries(), LOOKS, ROWS) for scene in (clean, spoilt)]
    assert torch.equal(*found) and found[0].isfinite().all()


def test_nobody_is_asked() -> None:
    found = ask(make_sources(torch.float32), make_queries(), LOOKS, [])
    assert found.shape == (0, len(HEADS), BLOCK_SIZE * (-(-max(SOURCES) // BLOCK_SIZE) + 1))


def test_shape_that_graphs_are_told() -> None:
    cache = KVLayout(2, NUM_HEADS, HEAD_DIM, torch.float32).allocate(3, torch.device("meta"))
    q, table = torch.empty(7, NUM_HEADS, HEAD_DIM, device="meta"), torch.empty(3, 5, dtype=torch.int32, device="meta")
    lengths, rows = torch.empty(3, dtype=torch.int32, device="meta"), torch.empty(4, dtype=torch.long, device="meta")
    found = cross_weights.OP(q, cache, 1, table, lengths, lengths, rows, HEADS, SCALE)
    assert (found.shape, found.dtype) == ((4, len(HEADS), 5 * BLOCK_SIZE), torch.float32)
