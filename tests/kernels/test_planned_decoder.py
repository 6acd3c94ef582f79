"""A tiny Llama in planned memory, bound to shapes, is the module itself, whatever was computed before."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from runtime.batch import ArraySpec, Batch
from runtime.capture import capture
from runtime.engine import EngineInfo
from runtime.engines.planned import PlannedEngine
from runtime.engines.reference import ReferenceEngine
from runtime.engines.speculating import without_logits
from runtime.engines.transfer import make_batch
from runtime.kv_cache.examples import page_alone
from runtime.kv_cache.layout import KVLayout
from runtime.lower import lower
from runtime.memory.lifetimes import BatchShape
from runtime.passes.pipeline import choose_precision, list_passes
from tests.kernels.kernel_cases import IMPLEMENTATIONS, find_backend
from tests.kernels.tiny_graphs import CPU, LLAMA_CONFIG, rewrite, tiny_llama
from tests.tolerances import check_close

LARGEST = BatchShape(64, 8, 64, 16)
INFO = EngineInfo(
    "planned", "fp32", "", "cpu", 1, (ArraySpec("logits", "float32", ("num_logits", LLAMA_CONFIG.vocab_size)),)
)
NUM_BLOCKS = 24
LAYOUT = KVLayout(LLAMA_CONFIG.num_layers, LLAMA_CONFIG.num_kv_heads, LLAMA_CONFIG.head_dim, torch.float32)


def page(seqlens: list[int], token_id: int, past: int = 0) -> Batch:
    return page_alone(make_batch(seqlens, token_id), num_blocks=NUM_BLOCKS, past=past)


def make_engine(implementation: str) -> PlannedEngine:
    backend = find_backend(implementation)
    passes = list_passes(choose_precision("fp32", backend), backend)
    program = lower(rewrite(capture(tiny_llama(), CPU), *passes), backend.kernels)
    return PlannedEngine(program, backend.kernels, LARGEST, CPU, INFO, None)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_steps_are_the_modules(implementation: str) -> None:
    planned = make_engine(implementation)
    reference = ReferenceEngine(tiny_llama(), planned.read, LARGEST, CPU, INFO)
    mine, theirs = ([LAYOUT.allocate(NUM_BLOCKS, CPU) for _ in range(2)] for _ in range(2))
    steps = [
        (0, page([7, 20], 3)),
        (0, page([1, 1], 5, past=20)),
        (1, page([7, 20], 9)),  # another cache, the same shapes
        (0, page([1, 1], 8, past=21)),  # the same shapes, other contents
        (0, page([1], 4, past=60)),  # a longer table
        (0, page([40, 20], 2)),  # more tokens than ever
        (1, page([1, 1], 6, past=20)),
        (0, page([1, 1], 7, past=20)),
    ]
    for index, batch in steps:
        found = planned.compute(batch, kv_cache=mine[index])["logits"].numpy()
        check_close(found, reference.compute(batch, kv_cache=theirs[index])["logits"].numpy())
        check_close(mine[index].numpy(), theirs[index].numpy())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_step_without_logits(implementation: str) -> None:
    """Of a prompt's first chunk only keys and values are wanted."""
    planned = make_engine(implementation)
    cache, expected = (LAYOUT.allocate(NUM_BLOCKS, CPU) for _ in range(2))
    batch = page([9, 3], 3)
    planned.compute(batch, kv_cache=expected)
    assert batch.paging is not None
    without = replace(batch, paging=without_logits(batch.paging))
    assert planned.compute(without, kv_cache=cache)["logits"].shape == (0, LLAMA_CONFIG.vocab_size)
    np.testing.assert_array_equal(cache.numpy(), expected.numpy())
