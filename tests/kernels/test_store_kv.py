"""Keys and values on their way into a paged cache: what is refused, and that programs keep the op before its reader."""

import pytest
import torch

from runtime.capture import capture
from runtime.kv_cache.blocks import BLOCK_SIZE
from runtime.lower import lower
from runtime.ops import paged_attention, store_kv
from runtime.passes.pipeline import choose_precision, list_passes
from tests.kernels.emulated import COMPILED
from tests.kernels.kernel_cases import CONFIGURABLE, find_backend, find_kernels
from tests.kernels.paged_scenes import MAX_POSITIONS, make_scene
from tests.kernels.tiny_graphs import CPU, LLAMA_CONFIG, rewrite, tiny_llama

NUM_BLOCKS = 6


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        *(("slots", value) for value in (-1, NUM_BLOCKS * BLOCK_SIZE, 1 << 40)),
        *(("positions", value) for value in (-1, MAX_POSITIONS)),
        *(("layer", value) for value in (-1, 3)),
    ],
)
def test_what_is_out_of_range_is_refused(place: str, wrong: int, isa: str) -> None:
    """And nothing is written."""
    scene = make_scene([40], rotary_dim=64)
    assert scene.cache.shape[1] == NUM_BLOCKS
    args = list(scene.list_stored([(0, 0, 40)]))
    index = {"layer": 3, "slots": 4, "positions": 5}[place]
    args[index] = wrong if place == "layer" else args[index].index_fill(0, torch.tensor([7]), wrong)
    before = scene.buffer.clone()
    with pytest.raises(IndexError, match="1 of the batch's slots, positions or layers are out of range"):
        find_kernels(isa)[store_kv.OP](*args, out=torch.empty(0))
    assert torch.equal(scene.buffer, before)


@pytest.mark.parametrize(
    ("implementation", "precision"),
    [
        *(pytest.param("torch", precision, marks=pytest.mark.slow) for precision in ("fp32", "bf16", "int8")),
        *(pytest.param(CONFIGURABLE[-1], precision, marks=pytest.mark.slow) for precision in ("fp32", "bf16")),
        (CONFIGURABLE[-1], "int8"),
    ],
)
def test_each_layer_stores_before_it_attends(implementation: str, precision: str) -> None:
    """After all passes, though nothing reads what the op gives, which takes no memory."""
    backend = find_backend(implementation)
    passes = list_passes(choose_precision(precision, backend), backend)
    program = lower(rewrite(capture(tiny_llama(), CPU), *passes), backend.kernels)
    found = [each for each in program.planned if each.target in (store_kv.OP, paged_attention.OP)]
    layers = range(LLAMA_CONFIG.num_layers)
    assert [each.target for each in found] == [store_kv.OP, paged_attention.OP] * len(layers)
    assert [each.args[3 if each.target is store_kv.OP else 2] for each in found] == [
        i for i in layers for _ in range(2)
    ]
    lives = [each.life for each in found if each.target is store_kv.OP]
    assert all(life is not None and life.start == life.end and not life.num_bytes.evaluate((9, 9, 9)) for life in lives)
