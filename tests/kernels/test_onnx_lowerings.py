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
from tests.tolerances import ENCODER_TOLERANCES, TOLERANCES, check_close

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


class Int8Layer(nn.Module):
    """`x_scale` 0: each row by its own range."""

    num_features = 64

    def __init__(self, act: str, x_scale: float, x_zero: int, *, has_smooth: bool, has_residual: bool) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.act, self.x_scale, self.x_zero, self.has_residual = act, x_scale, x_zero, has_residual
        weight = torch.randint(-63, 64, (64, 64), generator=random, dtype=torch.int8)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", torch.rand(64, generator=random) * 1e-2)
        self.register_buffer("bias", torch.randn(64, generator=random))
        self.register_buffer("smooth", torch.rand(64, generator=random) + 0.5 if has_smooth else None)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        residual = features if self.has_residual else None
        how = (self.act, residual, self.smooth, self.x_scale, self.x_zero, torch.float32)
        return {"rows": torch.ops.padless.linear_int8(features, self.weight, self.scale, self.bias, *how)}


@pytest.mark.parametrize("has_smooth", [False, True])
@pytest.mark.parametrize("act", ["none", "gelu", "gelu_tanh", "silu", "relu", "tanh"])
@pytest.mark.parametrize(("x_scale", "x_zero"), [(0.0, 0), (0.03, 117)])
def test_int8_layers(act: str, x_scale: float, x_zero: int, has_smooth: bool) -> None:
    """By a calibrated scale what is rounded is the same; a row's own range is as far below 0 as above here."""
    module = Int8Layer(act, x_scale, x_zero, has_smooth=has_smooth, has_residual=act == "none")
    engine = build(module, num_features=module.num_features)
    batch = make_features([20, 1, 9], module.num_features)
    expected = module(torch.from_numpy(batch.arrays["features"]))["rows"]
    tolerance = TOLERANCES[torch.float32] if x_scale else ENCODER_TOLERANCES["int8"]
    check_close(engine.compute(batch)["rows"], expected, tolerance=tolerance)


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
