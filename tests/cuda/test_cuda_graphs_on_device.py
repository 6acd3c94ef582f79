"""Recorded steps on a device: replayed, they give what the planned engine and the CPU's reference give."""

import numpy as np
import pytest
import torch

from runtime.build import build_engine
from runtime.config import EngineConfig
from runtime.engine import Engine
from runtime.engines.cuda_graphs import CudaGraphsEngine
from runtime.engines.decoder import DecoderEngine
from runtime.engines.transfer import make_batch
from runtime.kv_cache.examples import page_alone
from runtime.limits import BatchLimits
from tests.kernels.tiny_graphs import random_batch, tiny_bert, tiny_llama
from tests.tolerances import check_close

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ENCODER = BatchLimits(128, 16, 64)
DECODER = BatchLimits(64, 8, 64, max_batch_logits=16)


def silent(stage: str, done: int, total: int) -> None:
    """No progress is shown."""


def build(module: torch.nn.Module, limits: BatchLimits, **options: str) -> Engine:
    engine = build_engine(module, EngineConfig.model_validate({"precision": "fp32", **options}), limits, silent)
    engine.warmup(silent)
    return engine


def test_an_encoder() -> None:
    graphs, planned, reference = (
        build(tiny_bert(), ENCODER, kind=kind, device=device)
        for kind, device in (("cuda_graphs", "cuda"), ("planned", "cuda"), ("reference", "cpu"))
    )
    assert isinstance(graphs, CudaGraphsEngine) and [*graphs.recorded] == graphs.buckets.all
    before = torch.cuda.memory_reserved()
    for seed, seqlens in enumerate([[1], [5, 1, 9], [3] * 16, [40], [64, 30], [5, 1, 9]] * 20):
        batch = random_batch(seqlens, seed)
        found = graphs.run(batch).arrays["embeddings"]
        check_close(found, planned.run(batch).arrays["embeddings"])
        check_close(found, reference.run(batch).arrays["embeddings"])
    assert torch.cuda.memory_reserved() == before


def test_a_decoder() -> None:
    graphs, planned = (build(tiny_llama(), DECODER, kind=kind, device="cuda") for kind in ("cuda_graphs", "planned"))
    assert isinstance(graphs, DecoderEngine) and isinstance(planned, DecoderEngine)
    assert isinstance(graphs.inner, CudaGraphsEngine) and [*graphs.inner.recorded] == graphs.inner.buckets.all
    graphs.kv_cache.zero_()
    planned.kv_cache.zero_()
    for seqlens, past in (([7, 20], 0), ([1, 1], 20), ([1] * 5, 9), ([1] * 8, 40), ([1], 30)):
        batch = page_alone(make_batch(seqlens, 5), num_blocks=graphs.info.num_blocks, past=past)
        found, expected = graphs.run(batch).tokens, planned.run(batch).tokens
        assert found is not None and expected is not None
        np.testing.assert_array_equal(found.token_ids, expected.token_ids)
        check_close(graphs.kv_cache[:, 1:].cpu().numpy(), planned.kv_cache[:, 1:].cpu().numpy())
