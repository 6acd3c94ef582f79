"""Ops as ONNX Runtime computes them, where whole models do not show it: by several threads, and at the edges."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from runtime.backends.onnx.backend import export_program, onnx_backend
from runtime.backends.onnx.session import Session, check_providers
from runtime.batch import Batch
from runtime.capture import capture, describe_outputs
from runtime.config import EngineConfig, UnusableConfig
from runtime.engine import EngineInfo
from runtime.engines.onnx import OnnxEngine
from runtime.engines.transfer import make_batch
from runtime.kv_cache.examples import page_alone
from runtime.kv_cache.layout import KVLayout
from runtime.memory.lifetimes import BatchShape
from runtime.passes.pipeline import choose_precision, list_passes
from tests.kernels.tiny_graphs import CPU, LLAMA_CONFIG, rewrite, tiny_llama
from tests.tolerances import check_close

LARGEST = BatchShape(16_384, 64, 16_384, 64)
NUM_BLOCKS = 24


def build(module: nn.Module, threads: int = 1, num_features: int = 0) -> OnnxEngine:
    backend = onnx_backend(CPU)
    graph_module = rewrite(capture(module.eval(), CPU), *list_passes(choose_precision("fp32", backend), backend))
    info = EngineInfo("onnxruntime", "fp32", "", "cpu", threads, describe_outputs(graph_module))
    program = export_program(graph_module, LARGEST, info)
    session = Session(program.model, program.weights, EngineConfig(kind="onnxruntime", threads=threads))
    return OnnxEngine(session, LARGEST, program.info, num_features)


def make_features(seqlens: list[int], width: int, **arrays: list[int]) -> Batch:
    batch = make_batch(seqlens)
    numbers = np.random.default_rng(0).standard_normal((sum(seqlens), width), np.float32)
    more = {name: np.array(values, np.int32) for name, values in arrays.items()}
    return Batch(batch.arrays | {"features": numbers} | more, batch.cu_seqlens, batch.max_seqlen)


class Pooling(nn.Module):
    num_features = 384

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, features: Tensor, cu_seqlens: Tensor, num_prompt_tokens: Tensor) -> dict[str, Tensor]:
        return {"pooled": torch.ops.padless.pool(features, cu_seqlens, self.mode, False, num_prompt_tokens)}


@pytest.mark.parametrize("mode", ["mean", "max", "cls", "last"])
def test_pooling_by_several_threads(mode: str) -> None:
    """Tokens of one sequence meet in one row: no update may be lost."""
    module = Pooling(mode)
    engine = build(module, 2, module.num_features)
    batch = make_features([8192, 3, 2, 700], module.num_features, num_prompt_tokens=[5, 0, 2, 9])
    tensors = {name: torch.from_numpy(batch.arrays[name]) for name in ("features", "num_prompt_tokens")}
    expected = module(cu_seqlens=torch.from_numpy(batch.cu_seqlens), **tensors)["pooled"]
    for _ in range(20):
        check_close(engine.compute(batch)["pooled"], expected)


class Attending(nn.Module):
    num_features = 32

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, features: Tensor, cu_seqlens: Tensor, max_seqlen: int, num_keys: Tensor) -> dict[str, Tensor]:
        q = features.unflatten(1, (2, 16))
        lengths = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
        options = {"window": self.window, "num_keys": num_keys}
        return {"rows": torch.ops.padless.varlen_attention(q, q, q, *lengths, 0.25, **options).flatten(1)}


@pytest.mark.parametrize("window", [-1, 2, 100])
def test_queries_that_see_no_key_get_0(window: int) -> None:
    module = Attending(window)
    engine = build(module, num_features=module.num_features)
    batch = make_features([8, 1, 5, 20], module.num_features, num_keys=[2, 1, 0, 20])
    arrays = {name: torch.from_numpy(batch.arrays[name]) for name in ("features", "num_keys")}
    expected = module(cu_seqlens=torch.from_numpy(batch.cu_seqlens), max_seqlen=batch.max_seqlen, **arrays)["rows"]
    found = engine.compute(batch)["rows"]
    check_close(found, expected)
    assert torch.equal((found == 0).all(1), (expected == 0).all(1))


def test_what_others_left_in_a_block_is_not_seen() -> None:
    """A sequence that had gone to NaN gave its blocks back."""
    engine = build(tiny_llama())
    layout = KVLayout(LLAMA_CONFIG.num_layers, LLAMA_CONFIG.num_kv_heads, LLAMA_CONFIG.head_dim, torch.float32)
    found = []
    for value in (0.0, float("nan")):
        cache = layout.allocate(NUM_BLOCKS, CPU).fill_(value)
        for seqlens, past in (([7, 20], 0), ([20, 20], 0), ([1, 1], 20)):
            batch = page_alone(make_batch(seqlens, 3), num_blocks=NUM_BLOCKS, past=past)
            found.append(engine.compute(batch, kv_cache=cache)["logits"].clone())
    for clean, dirty in zip(found[:3], found[3:], strict=True):
        assert torch.isfinite(dirty).all()
        assert torch.equal(clean, dirty)


def test_a_provider_that_the_wheel_has_and_the_machine_has_not() -> None:
    with pytest.raises(UnusableConfig, match=r"CUDAExecutionProvider cannot be loaded on this machine"):
        check_providers(["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"])
    check_providers(["CPUExecutionProvider"], ["CPUExecutionProvider"])
