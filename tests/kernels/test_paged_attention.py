"""Attention over a paged cache against its reference, the reference against dense attention, and what must be exact."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from runtime.backends.backend import Kernel
from runtime.kv_cache.blocks import BLOCK_SIZE
from runtime.kv_cache.layout import load_rows
from runtime.ops.paged_attention import OP
from runtime.ops.rotate import turn_heads
from tests.kernels.emulated import COMPILED
from tests.kernels.kernel_cases import DTYPES, IMPLEMENTATIONS, KERNEL_TOLERANCES, find_kernels
from tests.kernels.paged_scenes import LAYER, MAX_POSITIONS, Part, Scene, make_scene, reference
from tests.tolerances import KV_CACHE_TOLERANCES, Tolerance, check_close

FP32, BF16, FP16, INT8 = torch.float32, torch.bfloat16, torch.float16, torch.int8
CACHE_DTYPES = [FP32, BF16, FP16, INT8]
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotary": {"rotary_dim": 64},
    "half rotary": {"rotary_dim": 20},
    "window": {"window": 37},
    "softcap": {"softcap": 3.0},
    "all": {"rotary_dim": 64, "window": 300, "softcap": 3.0},
}
SEQLENS = [560, 40, 300, 17, 1, 257]
PAST = [559, 0, 130, 16, 0, 255]
"""A decode step over several chunks, a prefill, a chunk of a prompt, a first token of a block, a lone one, a pair."""
ROUNDED_ELSEWHERE: dict[torch.dtype, Tolerance] = {
    FP32: KERNEL_TOLERANCES[FP32],
    BF16: Tolerance(norm=2e-4, bound=3e-2),
    FP16: Tolerance(norm=2e-5, bound=4e-3),
    INT8: Tolerance(norm=5e-4, bound=5e-2),
}
"""Against the reference over a cache of the same type: a rotated key that falls the other way moves by a whole step."""


both_thread_counts = pytest.mark.parametrize("num_threads", [1, 2])


def paged_kernel(implementation: str) -> Kernel:
    return find_kernels(implementation)[OP]


def new_parts(past: Sequence[int], seqlens: Sequence[int]) -> list[Part]:
    return [(seq, first, last) for seq, (first, last) in enumerate(zip(past, seqlens, strict=True))]


def past_parts(past: Sequence[int]) -> list[Part]:
    return [(seq, 0, length) for seq, length in enumerate(past) if length]


def check_step(implementation: str, scene: Scene, past: Sequence[int], num_threads: int = 1) -> None:
    """The reference computes the past, then both the rest: results must agree, and so must what is in the cache."""
    if past_parts(past):
        scene.step(reference, past_parts(past))
    other, parts = scene.copy(), new_parts(past, [len(q) for q in scene.q])
    actual = scene.step(paged_kernel(implementation), parts, num_threads)
    expected = other.step(reference, parts)
    dtype = scene.q[0].dtype
    tolerance = KERNEL_TOLERANCES[BF16] if dtype == BF16 else ROUNDED_ELSEWHERE[scene.cache.dtype]
    check_close(torch.cat(actual), torch.cat(expected), tolerance=tolerance, what="attention")
    for kind in range(2):
        check_close(stored(scene, kind), stored(other, kind), tolerance=tolerance, what="what is stored")


def stored(scene: Scene, kind: int) -> Tensor:
    """Keys (0) or values (1) of all sequences, read from the cache."""
    heads, head_dim = scene.cache[LAYER, :, kind], scene.k[0].shape[2]
    return torch.cat(
        [
            load_rows(heads, torch.tensor(blocks), len(q), head_dim, is_value=kind == 1)
            for q, blocks in zip(scene.q, scene.blocks, strict=True)
        ]
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
class TestAgainstTheReference:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("cache_dtype", CACHE_DTYPES, ids=str)
    @pytest.mark.parametrize("form", FORMS)
    @both_thread_counts
    def test_every_form(
        self, num_threads: int, form: str, cache_dtype: torch.dtype, dtype: torch.dtype, implementation: str
    ) -> None:
        scene = make_scene(SEQLENS, dtype=dtype, cache_dtype=cache_dtype, **FORMS[form])
        check_step(implementation, scene, PAST, num_threads)

    @pytest.mark.parametrize("cache_dtype", CACHE_DTYPES, ids=str)
    @pytest.mark.parametrize("head_dim", [8, 32, 40, 48, 64, 80, 128, 256])
    def test_every_head_size(self, head_dim: int, cache_dtype: torch.dtype, implementation: str) -> None:
        scene = make_scene([90, 20, 9], (4, 2), head_dim, cache_dtype=cache_dtype, rotary_dim=head_dim)
        check_step(implementation, scene, [89, 0, 3])

    @pytest.mark.parametrize("cache_dtype", CACHE_DTYPES, ids=str)
    @pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 24, 100])
    def test_every_group(self, group: int, cache_dtype: torch.dtype, implementation: str) -> None:
        """Rows of one micro-kernel, of several, and more than fit a tile."""
        check_step(implementation, make_scene([300, 20], (2 * group, 2), 32, cache_dtype=cache_dtype), [299, 0])

    @given(
        st.lists(st.tuples(st.integers(0, 70), st.integers(1, 40)), min_size=1, max_size=6),
        st.sampled_from(sorted(FORMS)),
        st.sampled_from(CACHE_DTYPES),
        st.integers(1, 3),
        st.integers(1, 4),
    )
    @settings(deadline=None, max_examples=50)
    def test_any_lengths(
        self,
        implementation: str,
        lengths: list[tuple[int, int]],
        form: str,
        cache_dtype: torch.dtype,
        num_kv_heads: int,
        group: int,
    ) -> None:
        seqlens = [past + new for past, new in lengths]
        heads = (num_kv_heads * group, num_kv_heads)
        scene = make_scene(seqlens, heads, 64, cache_dtype=cache_dtype, **FORMS[form])
        check_step(implementation, scene, [past for past, _ in lengths])

    @pytest.mark.parametrize("cache_dtype", CACHE_DTYPES, ids=str)
    def test_what_is_behind_a_window_may_be_gone(self, cache_dtype: torch.dtype, implementation: str) -> None:
        """The blocks before it belong to nobody any more: NaN, and a block table that ends there in block 0."""
        scene = make_scene([600], cache_dtype=cache_dtype, window=100)
        scene.step(reference, [(0, 0, 595)])
        expected = torch.cat(scene.copy().step(reference, [(0, 595, 600)]))
        for block in range((595 - 100) // BLOCK_SIZE):
            scene.cache[:, scene.blocks[0][block]] = -1 if cache_dtype == INT8 else torch.nan
            scene.blocks[0][block] = scene.blocks[0][0]
        actual = torch.cat(scene.step(paged_kernel(implementation), [(0, 595, 600)]))
        check_close(actual, expected, tolerance=ROUNDED_ELSEWHERE[cache_dtype])

    @pytest.mark.parametrize("form", ["plain", "window", "softcap"])
    @pytest.mark.parametrize("cache_dtype", CACHE_DTYPES, ids=str)
    def test_what_nobody_wrote_does_not_matter(self, cache_dtype: torch.dtype, form: str, implementation: str) -> None:
        """Bit for bit: NaN in other blocks, and in the last one behind the last key."""
        results = []
        for stale in (0.0, torch.nan):
            scene = make_scene(SEQLENS, (6, 2), 40, cache_dtype=cache_dtype, stale=stale, **FORMS[form])
            for parts in (past_parts(PAST), new_parts(PAST, SEQLENS)):
                results.append(torch.cat(scene.step(paged_kernel(implementation), parts)))
        assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])
        assert results[1].isfinite().all()

    @pytest.mark.parametrize("cache_dtype", CACHE_DTYPES, ids=str)
    @pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
    def test_nan_is_not_hidden(self, wrong: float, cache_dtype: torch.dtype, implementation: str) -> None:
        """Of the token that has it, and of those that look at it; others stay as they are."""
        scene = make_scene([300, 20], cache_dtype=cache_dtype)
        expected = scene.copy().step(paged_kernel(implementation), [(0, 0, 300), (1, 0, 20)])
        scene.v[0][290, 1, 5] = wrong
        scene.k[1][19, 0, 7] = torch.nan
        actual = scene.step(paged_kernel(implementation), [(0, 0, 300), (1, 0, 20)])
        assert not actual[0][290:, 3:].isfinite().all(2).any()
        assert not actual[1][19:, :3].isfinite().all(2).any()
        if implementation != "torch":  # which multiplies what it masks
            assert torch.equal(actual[0][:, :3], expected[0][:, :3])
            assert torch.equal(actual[1][:19], expected[1][:19])


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES, ids=str)
class TestExactness:
    """Bit for bit: a token's result depends on its sequence up to itself, and on nothing else."""

    @given(st.lists(st.integers(1, 400), max_size=5), st.sampled_from(["rotary", "window", "all"]), st.integers(1, 7))
    @settings(deadline=None, max_examples=25)
    def test_whole_as_in_chunks(
        self, isa: str, cache_dtype: torch.dtype, cuts: list[int], form: str, group: int
    ) -> None:
        scene = make_scene([600], (group, 1), 64, cache_dtype=cache_dtype, **FORMS[form])
        whole = scene.copy().step(paged_kernel(isa), [(0, 0, 600)])[0]
        borders = sorted({0, 600, *cuts})
        for first, last in itertools.pairwise(borders):
            assert torch.equal(scene.step(paged_kernel(isa), [(0, first, last)])[0], whole[first:last])

    def test_whole_as_token_by_token(self, isa: str, cache_dtype: torch.dtype) -> None:
        scene = make_scene([300], (3, 1), cache_dtype=cache_dtype, **FORMS["rotary"])
        whole = scene.copy().step(paged_kernel(isa), [(0, 0, 300)])[0]
        single = [scene.step(paged_kernel(isa), [(0, token, token + 1)])[0] for token in range(300)]
        assert torch.equal(torch.cat(single), whole)

    @pytest.mark.parametrize("form", FORMS)
    @both_thread_counts
    def test_single_tokens_of_every_form(self, num_threads: int, form: str, isa: str, cache_dtype: torch.dtype) -> None:
        """On two threads the chunks of a token are shared out, as there is but one head of keys."""
        scene = make_scene([600], (3, 1), cache_dtype=cache_dtype, **FORMS[form])
        whole = scene.step(paged_kernel(isa), [(0, 0, 600)])[0]
        for token in (0, 1, 15, 16, 254, 255, 256, 257, 300, 511, 512, 513, 599):
            single = scene.step(paged_kernel(isa), [(0, token, token + 1)], num_threads)[0]
            assert torch.equal(single, whole[token : token + 1])

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @both_thread_counts
    def test_alone_as_in_a_batch(
        self, num_threads: int, dtype: torch.dtype, isa: str, cache_dtype: torch.dtype
    ) -> None:
        scene = make_scene(SEQLENS, dtype=dtype, cache_dtype=cache_dtype, **FORMS["rotary"])
        scene.step(paged_kernel(isa), past_parts(PAST))
        parts = new_parts(PAST, SEQLENS)
        together = scene.copy().step(paged_kernel(isa), parts)
        for part, expected in zip(parts, together, strict=True):
            assert torch.equal(scene.step(paged_kernel(isa), [part], num_threads)[0], expected)

    def test_any_number_of_threads(self, isa: str, cache_dtype: torch.dtype) -> None:
        results = []
        for num_threads in (1, 2, 3):
            scene = make_scene(SEQLENS, cache_dtype=cache_dtype, **FORMS["rotary"])
            steps = (past_parts(PAST), new_parts(PAST, SEQLENS))
            results.append(
                torch.cat([out for parts in steps for out in scene.step(paged_kernel(isa), parts, num_threads)])
            )
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


NUM_BLOCKS = 10


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        *(("slots", value) for value in (-1, NUM_BLOCKS * BLOCK_SIZE, 1 << 40)),
        *(("positions", value) for value in (-1, MAX_POSITIONS)),
        *(("table", value) for value in (-1, NUM_BLOCKS)),
        *(("lengths", value) for value in (-1, 39, 5 * BLOCK_SIZE + 1)),
        *(("borders", value) for value in (-1, 41, 101)),
    ],
)
def test_what_is_out_of_range_is_refused(place: str, wrong: int, isa: str) -> None:
    """And nothing is written: a sequence of 40 tokens, then one of 60 in 4 blocks, of 5 that the table has room for."""
    scene = make_scene([40, 60], rotary_dim=64)
    assert scene.cache.shape[1] == NUM_BLOCKS
    args = list(scene.batch([(0, 0, 40), (1, 0, 60)]))
    index = {"slots": 5, "table": 6, "borders": 7, "lengths": 8, "positions": 11}[place]
    args[index] = args[index].clone()
    args[index].view(-1)[1 if place == "borders" else 0] = wrong
    before = scene.buffer.clone()
    with pytest.raises(IndexError, match="slots, blocks, positions, lengths or layers are out of range"):
        paged_kernel(isa)(*args, out=torch.empty(args[0].shape))
    assert torch.equal(scene.buffer, before)


@pytest.mark.parametrize("isa", COMPILED)
def test_more_tokens_than_there_are_is_refused(isa: str) -> None:
    scene = make_scene([40])
    args = list(scene.batch([(0, 30, 40)]))
    args[7] = args[7] + torch.tensor([0, 1], dtype=torch.int32)
    with pytest.raises(IndexError, match="1 of the batch's slots, blocks, positions, lengths or layers"):
        paged_kernel(isa)(*args, out=torch.empty(args[0].shape))
    with pytest.raises(IndexError, match="layers are out of range"):
        paged_kernel(isa)(*args[:4], 3, *args[5:], out=torch.empty(args[0].shape))


@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES, ids=str)
def test_what_a_type_of_cache_costs(cache_dtype: torch.dtype) -> None:
    """Of the reference, over short sequences and long ones."""
    expected = torch.cat(make_scene(SEQLENS, rotary_dim=64).step(reference, past_parts(SEQLENS)))
    scene = make_scene(SEQLENS, rotary_dim=64, cache_dtype=cache_dtype)
    actual = torch.cat(scene.step(reference, past_parts(SEQLENS)))
    check_close(actual, expected, tolerance=KV_CACHE_TOLERANCES[cache_dtype], what="attention over a cache")


def test_reference_is_dense_attention() -> None:
    """Step by step over a cache, as all at once without one."""
    scene = make_scene([50], (6, 2), 16, rotary_dim=16)
    steps = [(0, 0, 20), (0, 20, 49), (0, 49, 50)]
    actual = torch.cat([scene.step(reference, [part])[0] for part in steps])
    assert scene.rotary is not None
    q, k = (turn_heads(x, scene.rotary[:50]).transpose(0, 1) for x in (scene.q[0], scene.k[0]))
    v = scene.v[0].transpose(0, 1)
    expected = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    check_close(actual, expected.transpose(0, 1), tolerance=KERNEL_TOLERANCES[FP32])


def test_rotation_is_that_of_complex_numbers() -> None:
    scene = make_scene([30], (2, 2), 24, rotary_dim=16)
    assert scene.rotary is not None
    x, angles = scene.q[0], scene.rotary[:30]
    turned = torch.complex(x[..., :8], x[..., 8:16]) * torch.complex(angles[:, :8], angles[:, 8:])[:, None]
    expected = torch.cat([turned.real, turned.imag, x[..., 16:]], -1)
    check_close(turn_heads(x, angles), expected, tolerance=KERNEL_TOLERANCES[FP32])
