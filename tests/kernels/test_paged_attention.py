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

from runtime.kv_cache.blocks import BLOCK_SIZE
from runtime.kv_cache.layout import load_rows
from runtime.ops import paged_attention
from runtime.ops.rotate import turn_heads
from tests.kernels.emulated import COMPILED
from tests.kernels.kernel_cases import CONFIGURABLE, DTYPES, IMPLEMENTATIONS, KERNEL_TOLERANCES, find_kernels
from tests.kernels.paged_scenes import LAYER, MAX_POSITIONS, REFERENCE, Part, Scene, make_scene
from tests.tolerances import KV_CACHE_TOLERANCES, Tolerance, check_close

FP32, BF16, FP16, INT8 = torch.float32, torch.bfloat16, torch.float16, torch.int8
CACHE_DTYPES = [FP32, BF16, FP16, INT8]
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotary": {"rotary_dim": 64},
    "half rotary": {"rotary_dim": 20},
    "window": {"window": 37},
    "softcap": {"softcap": 3.0},
    "bias": {"reach": 600},
    "all": {"rotary_dim": 64, "window": 300, "softcap": 3.0, "reach": 600},
}
QUICK = [(1, form, FP32, FP32) for form in FORMS] + [
    (2, "all", cache, dtype) for cache in CACHE_DTYPES for dtype in DTYPES
]
FORM_CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in itertools.product((1, 2), FORMS, CACHE_DTYPES, DTYPES)
]
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
every_cache = pytest.mark.parametrize(
    "cache_dtype", [FP32, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (BF16, FP16)), INT8], ids=str
)


def new_parts(past: Sequence[int], seqlens: Sequence[int]) -> list[Part]:
    return [(seq, first, last) for seq, (first, last) in enumerate(zip(past, seqlens, strict=True))]


def past_parts(past: Sequence[int]) -> list[Part]:
    return [(seq, 0, length) for seq, length in enumerate(past) if length]


def check_step(implementation: str, scene: Scene, past: Sequence[int], num_threads: int = 1) -> None:
    """The reference computes the past, then both the rest: results must agree, and so must what is in the cache."""
    if past_parts(past):
        scene.step(REFERENCE, past_parts(past))
    other, parts = scene.copy(), new_parts(past, [len(q) for q in scene.q])
    actual = scene.step(find_kernels(implementation), parts, num_threads)
    expected = other.step(REFERENCE, parts)
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
    @pytest.mark.parametrize(("num_threads", "form", "cache_dtype", "dtype"), FORM_CASES, ids=str)
    def test_every_form(
        self, num_threads: int, form: str, cache_dtype: torch.dtype, dtype: torch.dtype, implementation: str
    ) -> None:
        scene = make_scene(SEQLENS, dtype=dtype, cache_dtype=cache_dtype, **FORMS[form])
        check_step(implementation, scene, PAST, num_threads)

    @every_cache
    @pytest.mark.parametrize("head_dim", [8, 32, 40, 48, 64, 80, 128, 256])
    def test_every_head_size(self, head_dim: int, cache_dtype: torch.dtype, implementation: str) -> None:
        scene = make_scene([90, 20, 9], (4, 2), head_dim, cache_dtype=cache_dtype, rotary_dim=head_dim)
        check_step(implementation, scene, [89, 0, 3])

    @every_cache
    @pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 24, 100])
    def test_every_group(self, group: int, cache_dtype: torch.dtype, implementation: str) -> None:
        """Rows of one micro-kernel, of several, and more than fit a tile."""
        check_step(implementation, make_scene([70, 20], (2 * group, 2), 32, cache_dtype=cache_dtype), [69, 0])

    @given(
        st.lists(st.tuples(st.integers(0, 70), st.integers(1, 40)), min_size=1, max_size=6),
        st.sampled_from(sorted(FORMS)),
        st.sampled_from(CACHE_DTYPES),
        st.integers(1, 3),
        st.integers(1, 4),
    )
    @settings(deadline=None, max_examples=20)
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

    @every_cache
    def test_what_is_behind_a_window_may_be_gone(self, cache_dtype: torch.dtype, implementation: str) -> None:
        """The blocks before it belong to nobody any more: NaN, and a block table that ends there in block 0."""
        scene = make_scene([600], cache_dtype=cache_dtype, window=100)
        scene.step(REFERENCE, [(0, 0, 595)])
        expected = torch.cat(scene.copy().step(REFERENCE, [(0, 595, 600)]))
        for block in range((595 - 100) // BLOCK_SIZE):
            scene.cache[:, scene.blocks[0][block]] = -1 if cache_dtype == INT8 else torch.nan
            scene.blocks[0][block] = scene.blocks[0][0]
        actual = torch.cat(scene.step(find_kernels(implementation), [(0, 595, 600)]))
        check_close(actual, expected, tolerance=ROUNDED_ELSEWHERE[cache_dtype])

    @pytest.mark.parametrize("form", ["plain", "window", "softcap"])
    @every_cache
    def test_what_nobody_wrote_does_not_matter(self, cache_dtype: torch.dtype, form: str, implementation: str) -> None:
        """Bit for bit: NaN in other blocks, and in the last one behind the last key."""
        results = []
        for stale in (0.0, torch.nan):
            scene = make_scene(SEQLENS, (6, 2), 40, cache_dtype=cache_dtype, stale=stale, **FORMS[form])
            for parts in (past_parts(PAST), new_parts(PAST, SEQLENS)):
                results.append(torch.cat(scene.step(find_kernels(implementation), parts)))
        assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])
        assert results[1].isfinite().all()

    @every_cache
    @pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
    def test_nan_is_not_hidden(self, wrong: float, cache_dtype: torch.dtype, implementation: str) -> None:
        """Of the token that has it, and of those that look at it; others stay as they are."""
        scene = make_scene([300, 20], cache_dtype=cache_dtype)
        expected = scene.copy().step(find_kernels(implementation), [(0, 0, 300), (1, 0, 20)])
        scene.v[0][290, 1, 5] = wrong
        scene.k[1][19, 0, 7] = torch.nan
        actual = scene.step(find_kernels(implementation), [(0, 0, 300), (1, 0, 20)])
        assert not actual[0][290:, 3:].isfinite().all(2).any()
        assert not actual[1][19:, :3].isfinite().all(2).any()
        if implementation != "torch":  # which multiplies what it masks
            assert torch.equal(actual[0][:, :3], expected[0][:, :3])
            assert torch.equal(actual[1][:19], expected[1][:19])


@pytest.mark.parametrize("isa", COMPILED)
@every_cache
class TestExactness:
    """Bit for bit: a token's result depends on its sequence up to itself, and on nothing else."""

    @given(st.lists(st.integers(1, 400), max_size=5), st.sampled_from(["rotary", "window", "all"]), st.integers(1, 7))
    @settings(deadline=None, max_examples=10)
    def test_whole_as_in_chunks(
        self, isa: str, cache_dtype: torch.dtype, cuts: list[int], form: str, group: int
    ) -> None:
        scene = make_scene([600], (group, 1), 64, cache_dtype=cache_dtype, **FORMS[form])
        whole = scene.copy().step(find_kernels(isa), [(0, 0, 600)])[0]
        borders = sorted({0, 600, *cuts})
        for first, last in itertools.pairwise(borders):
            assert torch.equal(scene.step(find_kernels(isa), [(0, first, last)])[0], whole[first:last])

    def test_whole_as_token_by_token(self, isa: str, cache_dtype: torch.dtype) -> None:
        scene = make_scene([300], (3, 1), cache_dtype=cache_dtype, **FORMS["rotary"])
        whole = scene.copy().step(find_kernels(isa), [(0, 0, 300)])[0]
        single = [scene.step(find_kernels(isa), [(0, token, token + 1)])[0] for token in range(300)]
        assert torch.equal(torch.cat(single), whole)

    @pytest.mark.parametrize("form", FORMS)
    @both_thread_counts
    def test_single_tokens_of_every_form(self, num_threads: int, form: str, isa: str, cache_dtype: torch.dtype) -> None:
        """On two threads the chunks of a token are shared out, as there is but one head of keys."""
        scene = make_scene([600], (3, 1), cache_dtype=cache_dtype, **FORMS[form])
        whole = scene.step(find_kernels(isa), [(0, 0, 600)])[0]
        for token in (0, 1, 15, 16, 254, 255, 256, 257, 300, 511, 512, 513, 599):
            single = scene.step(find_kernels(isa), [(0, token, token + 1)], num_threads)[0]
            assert torch.equal(single, whole[token : token + 1])

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @both_thread_counts
    def test_alone_as_in_a_batch(
        self, num_threads: int, dtype: torch.dtype, isa: str, cache_dtype: torch.dtype
    ) -> None:
        scene = make_scene(SEQLENS, dtype=dtype, cache_dtype=cache_dtype, **FORMS["rotary"])
        scene.step(find_kernels(isa), past_parts(PAST))
        parts = new_parts(PAST, SEQLENS)
        together = scene.copy().step(find_kernels(isa), parts)
        for part, expected in zip(parts, together, strict=True):
            assert torch.equal(scene.step(find_kernels(isa), [part], num_threads)[0], expected)

    def test_any_number_of_threads(self, isa: str, cache_dtype: torch.dtype) -> None:
        results = []
        for num_threads in (1, 2, 3):
            scene = make_scene(SEQLENS, cache_dtype=cache_dtype, **FORMS["rotary"])
            steps = (past_parts(PAST), new_parts(PAST, SEQLENS))
            results.append(
                torch.cat([out for parts in steps for out in scene.step(find_kernels(isa), parts, num_threads)])
            )
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


NUM_BLOCKS = 10


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        *(("positions", value) for value in (-1, MAX_POSITIONS)),
        *(("table", value) for value in (-1, NUM_BLOCKS)),
        *(("lengths", value) for value in (-1, 39, 5 * BLOCK_SIZE + 1)),
        *(("borders", value) for value in (-1, 41, 101)),
    ],
)
def test_what_is_out_of_range_is_refused(place: str, wrong: int, isa: str) -> None:
    """A sequence of 40 tokens, then one of 60 in 4 blocks, of 5 that the table has room for."""
    scene = make_scene([40, 60], rotary_dim=64)
    assert scene.cache.shape[1] == NUM_BLOCKS
    args = list(scene.list_attended([(0, 0, 40), (1, 0, 60)]))
    index = {"table": 3, "borders": 4, "lengths": 5, "positions": 8}[place]
    args[index] = args[index].clone()
    args[index].view(-1)[1 if place == "borders" else 0] = wrong
    with pytest.raises(IndexError, match="blocks, positions, lengths or layers are out of range"):
        find_kernels(isa)[paged_attention.OP](*args, out=torch.empty(args[0].shape))


@pytest.mark.parametrize("isa", COMPILED)
def test_more_tokens_than_there_are_is_refused(isa: str) -> None:
    scene, kernel = make_scene([40]), find_kernels(isa)[paged_attention.OP]
    args = list(scene.list_attended([(0, 30, 40)]))
    with pytest.raises(IndexError, match="layers are out of range"):
        kernel(*args[:2], 3, *args[3:], out=torch.empty(args[0].shape))
    args[4] = args[4] + torch.tensor([0, 1], dtype=torch.int32)
    with pytest.raises(IndexError, match="1 of the batch's blocks, positions, lengths or layers"):
        kernel(*args, out=torch.empty(args[0].shape))


def test_sequence_longer_than_the_bias_is_refused() -> None:
    """By one key; a sequence that the bias just reaches is in the tests above."""
    args = make_scene([20, 40], reach=39).list_attended([(0, 19, 20), (1, 39, 40)])
    with pytest.raises(ValueError, match="a sequence of 40 tokens is over the 39 that the attention bias reaches"):
        paged_attention.OP(*args)
    for isa in CONFIGURABLE:
        with pytest.raises((ValueError, IndexError), match="attention bias reaches"):
            find_kernels(isa)[paged_attention.OP](*args, out=torch.empty(args[0].shape))


def test_bias_goes_by_distance() -> None:
    """The reference: what is added to the scores of one query, read from weights that nothing else makes uneven."""
    scene = make_scene([20], (2, 2), 16, reach=20)
    scene.q[0].zero_()
    scene.v[0][:, :, 0] = torch.arange(20.0)[:, None]
    found = scene.step(REFERENCE, [(0, 0, 20)])[0][12, :, 0]
    weights = scene.form["bias"][:, :13].flip(1).softmax(1)
    check_close(found, weights @ torch.arange(13.0), tolerance=KERNEL_TOLERANCES[FP32])


@every_cache
def test_what_a_type_of_cache_costs(cache_dtype: torch.dtype) -> None:
    """Of the reference, over short sequences and long ones."""
    expected = torch.cat(make_scene(SEQLENS, rotary_dim=64).step(REFERENCE, past_parts(SEQLENS)))
    scene = make_scene(SEQLENS, rotary_dim=64, cache_dtype=cache_dtype)
    actual = torch.cat(scene.step(REFERENCE, past_parts(SEQLENS)))
    check_close(actual, expected, tolerance=KV_CACHE_TOLERANCES[cache_dtype], what="attention over a cache")


def test_reference_is_dense_attention() -> None:
    """Step by step over a cache, as all at once without one."""
    scene = make_scene([50], (6, 2), 16, rotary_dim=16)
    steps = [(0, 0, 20), (0, 20, 49), (0, 49, 50)]
    actual = torch.cat([scene.step(REFERENCE, [part])[0] for part in steps])
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
