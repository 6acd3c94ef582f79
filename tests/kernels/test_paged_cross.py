"""Queries that see all keys of a cached source, as an encoder-decoder's look at theirs: several may share one."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from runtime.ops import paged_attention
from tests.kernels.emulated import COMPILED
from tests.kernels.kernel_cases import DTYPES, IMPLEMENTATIONS, KERNEL_TOLERANCES, find_kernels, random_tensor
from tests.kernels.paged_scenes import REFERENCE, Look, Scene, make_scene
from tests.tolerances import check_close

FP32, BF16, FP16, INT8 = torch.float32, torch.bfloat16, torch.float16, torch.int8
SOURCES = [300, 0, 17, 560, 5]
LOOKS: list[Look] = [(0, 1), (0, 1), (0, 1), (0, 1), (1, 3), (2, 40), (3, 2), (3, 1), (0, 1), (4, 6), (4, 200), (3, 0)]
"""Beams of one source, a source of nothing, more queries than keys, a beam apart from its others, more queries than a
tile holds, a beam without a query."""
both_thread_counts = pytest.mark.parametrize("num_threads", [1, 2])
every_cache = pytest.mark.parametrize(
    "cache_dtype", [FP32, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (BF16, FP16)), INT8], ids=str
)


def make_sources(cache_dtype: torch.dtype, dtype: torch.dtype = FP32, group: int = 3, stale: float = 0.0) -> Scene:
    scene = make_scene(SOURCES, (2 * group, 2), 40, dtype=dtype, cache_dtype=cache_dtype, stale=stale)
    scene.store(REFERENCE)
    return scene


def make_queries(scene: Scene, looks: Sequence[Look] = LOOKS) -> Tensor:
    return random_tensor(sum(count for _, count in looks), *scene.q[0].shape[1:], dtype=scene.q[0].dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_cache
@both_thread_counts
def test_against_the_reference(
    num_threads: int, cache_dtype: torch.dtype, dtype: torch.dtype, implementation: str
) -> None:
    scene = make_sources(cache_dtype, dtype)
    q = make_queries(scene)
    actual = scene.look(find_kernels(implementation), q, LOOKS, num_threads)
    check_close(actual, scene.look(REFERENCE, q, LOOKS), tolerance=KERNEL_TOLERANCES[dtype], what="cross-attention")
    assert not actual[4:7].any(), "a query that sees no key"


def test_reference_is_dense_attention() -> None:
    scene = make_sources(FP32)
    looks = [(2, 40), (0, 1)]
    q = make_queries(scene, looks)
    found = scene.look(REFERENCE, q, looks).split([40, 1])
    for (seq, _), part, queries in zip(looks, found, q.split([40, 1]), strict=True):
        k, v = (x[seq].transpose(0, 1) for x in (scene.k, scene.v))
        expected = functional.scaled_dot_product_attention(queries.transpose(0, 1), k, v, enable_gqa=True)
        check_close(part, expected.transpose(0, 1), tolerance=KERNEL_TOLERANCES[FP32])


@pytest.mark.parametrize("isa", COMPILED)
@every_cache
@both_thread_counts
def test_together_as_alone(num_threads: int, cache_dtype: torch.dtype, isa: str) -> None:
    """Bit for bit, beams that share a source too."""
    scene = make_sources(cache_dtype)
    q = make_queries(scene)
    together = scene.look(find_kernels(isa), q, LOOKS).split([count for _, count in LOOKS])
    for look, queries, expected in zip(LOOKS, q.split([count for _, count in LOOKS]), together, strict=True):
        if look[1]:
            assert torch.equal(scene.look(find_kernels(isa), queries, [look], num_threads), expected)


@pytest.mark.parametrize("isa", COMPILED)
@every_cache
def test_what_nobody_wrote_does_not_matter(cache_dtype: torch.dtype, isa: str) -> None:
    """Bit for bit: NaN in other blocks, and in a source's last one behind its last key."""
    clean, spoilt = (make_sources(cache_dtype, stale=stale) for stale in (0.0, torch.nan))
    found = [scene.look(find_kernels(isa), make_queries(scene), LOOKS) for scene in (clean, spoilt)]
    assert torch.equal(*found) and found[0].isfinite().all()


@pytest.mark.parametrize("form", [{"window": 4}, {"bias": torch.zeros(6, 600)}], ids=["window", "bias"])
def test_what_needs_an_order_is_refused_without_one(form: dict[str, object]) -> None:
    scene = make_sources(FP32)
    args = (make_queries(scene, [(2, 1)]), scene.cache, 1, scene.make_table([2], [17]))
    lengths = (torch.tensor([0, 1]).int(), torch.tensor([17]).int(), 1)
    with pytest.raises(ValueError, match="window and bias need causal=True"):
        paged_attention.OP(*args, *lengths, 1.0, causal=False, **form)
