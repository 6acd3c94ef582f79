"""Keys and values stored in a paged cache by rows and attended to, by Triton: against the references, and compiled."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from runtime.backends.backend import Kernel
from runtime.backends.cuda import paged_attention as module
from runtime.backends.cuda.paged_attention import choose_split, paged_attention
from runtime.backends.cuda.store_kv import store_kv
from runtime.kv_cache.blocks import BLOCK_SIZE
from runtime.ops import paged_attention as paged_attention_op
from runtime.ops import store_kv as store_kv_op
from tests.cuda.cuda_cases import CUDA_TOLERANCES, DTYPES, check_compiled, every_capability, run_on
from tests.kernels.kernel_cases import random_tensor
from tests.kernels.paged_scenes import REFERENCE, Kernels, Part, Scene, make_scene
from tests.tolerances import check_close

FP32, FP16, BF16, INT8 = torch.float32, torch.float16, torch.bfloat16, torch.int8
CACHE_DTYPES = [FP32, FP16, BF16, INT8]
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotary": {"rotary_dim": 32},
    "window": {"window": 37},
    "softcap": {"softcap": 3.0},
    "bias": {"reach": 100},
    "all": {"rotary_dim": 20, "window": 37, "softcap": 3.0, "reach": 100},
}
SEQLENS, PAST = [70, 24, 7, 1], [69, 14, 0, 0]
"""A decode step, a chunk of a prompt, a prefill, a first token."""
QUICK = [("window", FP16, FP16), ("all", FP32, FP32), ("all", FP16, INT8), ("rotary", BF16, BF16)]


def slow_unless(is_quick: bool) -> Any:
    return () if is_quick else pytest.mark.slow


def kernels_on(device: torch.device) -> Kernels:
    """As if they took tensors of the CPU; what they write to a cache comes back to it."""

    def run(kernel: Kernel, *args: Any, out: Tensor) -> None:
        cache = next(each for each in args if isinstance(each, Tensor) and each.dim() == 6)
        moved = cache.to(device)
        swapped = [moved if each is cache else each for each in args]
        out.copy_(run_on(device, kernel, tuple(out.shape), out.dtype, *swapped))
        cache.copy_(moved)

    return {
        store_kv_op.OP: lambda *args, out: run(store_kv, *args, out=out),
        paged_attention_op.OP: lambda *args, out: run(paged_attention, *args, out=out),
    }


def new_parts(past: Sequence[int], seqlens: Sequence[int]) -> list[Part]:
    return [(seq, first, last) for seq, (first, last) in enumerate(zip(past, seqlens, strict=True))]


def check_step(device: torch.device, scene: Scene, past: Sequence[int]) -> Tensor:
    """The reference computes the past, then both the rest. Results must agree, and so must what is in the cache."""
    before = [(seq, 0, length) for seq, length in enumerate(past) if length]
    if before:
        scene.step(REFERENCE, before)
    other, parts = scene.copy(), new_parts(past, [len(q) for q in scene.q])
    actual = torch.cat(scene.step(kernels_on(device), parts))
    expected = torch.cat(other.step(REFERENCE, parts))
    check_close(actual, expected, tolerance=CUDA_TOLERANCES[scene.q[0].dtype], what="attention")
    if device.type == "cpu":
        assert torch.equal(scene.cache.view(torch.uint8), other.cache.view(torch.uint8)), "another cache"
    return actual


@pytest.mark.parametrize(
    ("form", "dtype", "cache_dtype"),
    [pytest.param(*case, marks=slow_unless(case in QUICK)) for case in itertools.product(FORMS, DTYPES, CACHE_DTYPES)],
    ids=str,
)
def test_every_form(form: str, dtype: torch.dtype, cache_dtype: torch.dtype, device: torch.device) -> None:
    scene = make_scene(SEQLENS, (3, 1), 32, dtype, cache_dtype, order="rows", **FORMS[form])
    check_step(device, scene, PAST)


@pytest.mark.parametrize(
    ("head_dim", "cache_dtype"),
    [
        pytest.param(*case, marks=slow_unless(case in [(80, INT8), (128, FP32)]))
        for case in itertools.product([8, 12, 64, 80, 128, 256], [FP32, INT8])
    ],
    ids=str,
)
def test_every_head_size(head_dim: int, cache_dtype: torch.dtype, device: torch.device) -> None:
    scene = make_scene([20, 9], (2, 1), head_dim, cache_dtype=cache_dtype, rotary_dim=head_dim, order="rows")
    check_step(device, scene, [19, 3])


@pytest.mark.parametrize("group", [pytest.param(group, marks=slow_unless(group == 5)) for group in (1, 5, 9, 40)])
def test_every_group(group: int, device: torch.device) -> None:
    """Also those of more heads than a tile has rows, and that leave rows over."""
    check_step(device, make_scene([40, 5], (2 * group, 2), 16, order="rows"), [38, 0])


@pytest.mark.parametrize("form", ["plain", pytest.param("all", marks=pytest.mark.slow)])
def test_keys_that_are_split(form: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences that fill all splits, some, and one."""
    monkeypatch.setattr(module, "LEAST_KEYS", 32)
    joined = []
    monkeypatch.setattr(module, "choose_split", lambda *sizes: joined.append(sizes) or choose_split(*sizes))
    scene = make_scene([100, 64, 65, 3], (3, 1), 32, FP16, FP16, order="rows", **FORMS[form])
    check_step(device, scene, [99, 63, 62, 0])
    ((num_programs, max_keys),) = joined
    assert max_keys // choose_split(num_programs, max_keys) >= 3


@pytest.mark.parametrize("cache_dtype", [FP32, INT8], ids=str)
def test_what_nobody_wrote_does_not_matter(cache_dtype: torch.dtype, device: torch.device) -> None:
    """NaN in other blocks, behind the last key, and in blocks that lie before the window and are somebody else's."""
    scene = make_scene([90, 20], (2, 1), 16, cache_dtype=cache_dtype, stale=torch.nan, window=20, order="rows")
    scene.step(REFERENCE, [(0, 0, 88), (1, 0, 19)])
    expected = torch.cat(scene.copy().step(REFERENCE, [(0, 88, 90), (1, 19, 20)]))
    for block in range((88 - 20) // BLOCK_SIZE):
        scene.cache[:, scene.blocks[0][block]] = -1 if cache_dtype == INT8 else torch.nan
        scene.blocks[0][block] = scene.blocks[0][0]
    actual = torch.cat(scene.step(kernels_on(device), [(0, 88, 90), (1, 19, 20)]))
    check_close(actual, expected, tolerance=CUDA_TOLERANCES[FP32])


@pytest.mark.parametrize("cache_dtype", [FP32, pytest.param(INT8, marks=pytest.mark.slow)], ids=str)
def test_queries_that_look_at_a_source(cache_dtype: torch.dtype, device: torch.device) -> None:
    """All keys, in no order: beams of one source, a source of nothing, more queries than keys."""
    scene = make_scene([50, 0, 17], (4, 2), 16, cache_dtype=cache_dtype, order="rows")
    scene.store(REFERENCE)
    looks = [(0, 1), (0, 1), (1, 3), (2, 30), (0, 1)]
    q = random_tensor(36, 4, 16)
    actual = scene.look(kernels_on(device), q, looks)
    check_close(actual, scene.look(REFERENCE, q, looks), tolerance=CUDA_TOLERANCES[FP32])
    assert not actual[2:5].any(), "a query that sees no key"


def test_alone_as_in_a_batch(device: torch.device) -> None:
    """Bit for bit in the interpreter, where one batch has no more splits than the other."""
    scene = make_scene(SEQLENS, (3, 1), 16, rotary_dim=16, order="rows")
    scene.step(REFERENCE, [(0, 0, 69), (1, 0, 14)])
    parts = new_parts(PAST, SEQLENS)
    together = scene.copy().step(kernels_on(device), parts)
    tolerance = 0.0 if device.type == "cpu" else 1e-6
    for part, expected in zip(parts, together, strict=True):
        alone = scene.step(kernels_on(device), [part])[0]
        torch.testing.assert_close(alone, expected, rtol=tolerance, atol=tolerance)


def test_cache_in_panels_is_refused() -> None:
    scene = make_scene([20], (2, 1), 16)
    parts = [(0, 0, 20)]
    for kernel, args in ((store_kv, scene.list_stored(parts)), (paged_attention, scene.list_attended(parts))):
        with pytest.raises(ValueError, match="take one by rows"):
            kernel(*args, out=torch.empty(20, 2, 16))


def test_splits_fill_a_device_and_no_more() -> None:
    """Powers of two, so that a longer batch-mate seldom moves their borders."""
    assert choose_split(1, 100) == 256
    assert choose_split(8, 8192) == 256
    assert choose_split(8, 100_000) == 2048
    assert choose_split(256, 4096) == 2048
    assert choose_split(257, 4096) == 4096


BUILD_DTYPES = [(FP32, FP32), (FP32, INT8), (FP16, FP16), (FP16, INT8), (BF16, BF16)]
BUILDS = [
    (form, head_dim, *dtypes, num_new)
    for form, head_dim, dtypes, num_new in itertools.product(
        ["plain", "all"], [32, 64, 80, 128, 256], BUILD_DTYPES, [1, 40]
    )
]
"""By the tokens of a sequence: a decode step, whose keys are split, and a prefill."""
QUICK_BUILDS = [("plain", 64, FP16, FP16, 1)]


@every_capability
@pytest.mark.parametrize(
    ("form", "head_dim", "dtype", "cache_dtype", "num_new"),
    [pytest.param(*build, marks=slow_unless(build in QUICK_BUILDS)) for build in BUILDS],
    ids=str,
)
def test_compiles(
    form: str, head_dim: int, dtype: torch.dtype, cache_dtype: torch.dtype, num_new: int, capability: int
) -> None:
    scene = make_scene([600, 600], (8, 2), head_dim, dtype, cache_dtype, order="rows", **FORMS[form] | {"reach": 600})
    parts = [(seq, 600 - num_new, 600) for seq in range(2)]
    check_compiled(capability, store_kv, store_kv_op.OP, *scene.list_stored(parts))
    check_compiled(capability, paged_attention, paged_attention_op.OP, *scene.list_attended(parts))
