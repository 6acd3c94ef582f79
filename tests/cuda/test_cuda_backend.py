"""What a CUDA device gets: kernels and precision by its capability, a cache by rows, launchers that never wait."""

import importlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy.typing as npt
import pytest
import torch
from torch import nn

from runtime import build
from runtime.backends.backend import Backend
from runtime.backends.cuda.backend import PASSES, cuda_backend
from runtime.backends.cuda.library import TRITON, load_kernels
from runtime.backends.cuda.ops import EXPERTS_SUMMED, LINEAR_INT8_SUMMED
from runtime.backends.cuda.table import TRITON_KERNELS
from runtime.backends.plain.table import TORCH_KERNELS, plain_backend
from runtime.build import compile_model
from runtime.config import EngineConfig, Precision, UnusableConfig
from runtime.engine import Engine, EngineInfo
from runtime.engines.decoder import DecoderEngine
from runtime.engines.transfer import make_batch
from runtime.kv_cache.examples import page_alone
from runtime.limits import BatchLimits
from runtime.open import find_kernels, open_engine
from runtime.ops import (
    add_norm,
    embed_norm,
    experts,
    gated_act,
    linear_act,
    linear_fp8,
    linear_weight_only,
    lora,
    max_logits,
    paged_attention,
    pool,
    rotate,
    store_kv,
    varlen_attention,
)
from runtime.passes.pipeline import choose_precision, list_candidates
from runtime.targets import find_backend
from tests.cuda.compiling import name_variant, recorded
from tests.cuda.cuda_cases import move
from tests.cuda.interpreting import interpreted
from tests.kernels.paged_scenes import make_scene
from tests.kernels.tiny_graphs import CPU, captured_once, tiny_bert, tiny_llama
from tests.quantization.rounded_layers import KINDS
from tests.tolerances import DECODER_TOLERANCES, check_close

CUDA = torch.device("cuda")


@pytest.fixture
def capable(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], Backend]:
    """The backend of a device of this capability, of which torch says that it supports bf16, as it does of all."""

    def make(major: int, minor: int) -> Backend:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        return cuda_backend(CUDA)

    return make


def test_devices_from_ampere_on_get_tritons_kernels(capable: Callable[[int, int], Backend]) -> None:
    """And torch's for all other ops."""
    backend = capable(8, 0)
    assert backend.name == TRITON and backend.kv_order == "rows" and backend.device == CUDA
    assert backend.kernels == {**TORCH_KERNELS, **TRITON_KERNELS}
    assert backend.kernels[varlen_attention.OP] is not TORCH_KERNELS[varlen_attention.OP]


@pytest.mark.parametrize("capability", [(7, 0), (7, 5)])
def test_older_devices_get_torchs(capability: tuple[int, int], capable: Callable[[int, int], Backend]) -> None:
    assert capable(*capability) == plain_backend(CUDA)


@pytest.mark.parametrize(
    ("capability", "precisions"),
    [((7, 0), ["fp32", "fp16"]), ((7, 5), ["fp32", "fp16"]), ((8, 0), ["bf16"]), ((9, 0), ["bf16"])],
)
def test_bf16_that_is_emulated_is_not_chosen(
    capability: tuple[int, int], precisions: list[str], capable: Callable[[int, int], Backend]
) -> None:
    backend = capable(*capability)
    assert [candidate.precision for candidate in list_candidates(backend)] == precisions
    reason = choose_precision("bf16", backend).reason
    assert ("has no bf16" in reason) == ("fp16" in precisions) and "CUDA" in reason


@pytest.mark.parametrize(
    ("capability", "precision", "is_refused"),
    [((7, 5), "int8_weights", True), ((8, 0), "int4_weights", False), ((8, 6), "fp8", True), ((8, 9), "fp8", False)],
)
def test_precisions_that_a_device_has_no_instructions_for(
    capability: tuple[int, int],
    precision: Precision,
    is_refused: bool,
    capable: Callable[[int, int], Backend],
) -> None:
    assert (precision not in capable(*capability).precisions) == is_refused
    config = EngineConfig(device="cuda", precision=precision)
    if not is_refused:
        assert find_backend(config, lambda *_: None).precisions == capable(*capability).precisions
        return
    with pytest.raises(UnusableConfig, match=rf"engine\.precision {precision} .* 8\.9 or newer.* Set precision to"):
        find_backend(config, lambda *_: None)


@pytest.mark.parametrize(("precision", "capability"), [("fp8", (8, 6)), ("bf16", (7, 5))])
def test_a_model_compiled_on_a_device_of_another_kind(
    precision: str, capability: tuple[int, int], capable: Callable[[int, int], Backend]
) -> None:
    program = SimpleNamespace(info=EngineInfo("planned", precision, "", "cuda:0", 1, (), kernels=TRITON))
    compiled: Any = SimpleNamespace(programs={"only": program})
    config = EngineConfig(device="cuda", devices=(0, 1))
    capable(8, 9)
    assert find_kernels(compiled, config, CUDA, lambda *_: None) == load_kernels()
    capable(*capability)
    with pytest.raises(
        UnusableConfig, match=rf"engine\.precision {precision} .*engine\.devices has to name devices of one"
    ):
        find_kernels(compiled, config, CUDA, lambda *_: None)


def test_missing_triton_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(importlib, "import_module", fail)
    missing = "triton"
    with pytest.raises(UnusableConfig, match="Triton is not installed"):
        load_kernels()
    missing = "runtime.ops"
    with pytest.raises(ModuleNotFoundError, match=r"runtime\.ops"):
        load_kernels()


def describe_calls(device: torch.device) -> Mapping[object, tuple[Any, ...]]:
    """Arguments for every kernel of the table, on a device."""
    scene = make_scene([300, 20], (4, 2), 32, rotary_dim=32, cache_dtype=torch.int8, order="rows")
    parts = [(0, 299, 300), (1, 0, 20)]
    stored, attended = scene.list_stored(parts), scene.list_attended(parts)
    cu_seqlens = attended[4]
    calls = {
        store_kv.OP: stored,
        paged_attention.OP: attended,
        rotate.OP: (stored[0], stored[5], stored[6]),
        varlen_attention.OP: (stored[0], stored[0], stored[1], cu_seqlens, cu_seqlens, 20, 20, 0.25),
    }
    return {op: move(args, device) for op, args in (calls | describe_other_calls()).items()}


def describe_other_calls(num_rows: int = 100) -> dict[Any, tuple[Any, ...]]:
    """Over rows of 64, in 16 bits but for the head."""
    x, vector = torch.zeros(num_rows, 64, dtype=torch.bfloat16), torch.zeros(64)
    ids = torch.zeros(num_rows, dtype=torch.int64)
    weight, cu_seqlens = torch.zeros(64, 64, dtype=torch.bfloat16), torch.tensor([0, 30, num_rows], dtype=torch.int32)
    int8, sums, scales_of_groups = weight.to(torch.int8), vector.int(), weight[:1]
    up, down = torch.zeros(5, 64, 64, dtype=torch.bfloat16), torch.zeros(5, 64, 32, dtype=torch.bfloat16)
    of_experts = (x, torch.zeros(5, 64), up, down, 2, "silu", True, True)
    int8_experts = (*of_experts[:2], up.to(torch.int8), down.to(torch.int8), *of_experts[4:])
    scales = (torch.ones(5, 64), torch.ones(5, 64), torch.ones(5, 64).int(), torch.ones(5, 64).int())
    return {
        linear_act.OP: (x, weight, None, "gelu"),
        LINEAR_INT8_SUMMED.target: (x, int8, sums, vector, None, "gelu", None, None, 0.0, 0, torch.uint8),
        linear_fp8.OP: (x, weight.to(linear_fp8.E4M3), vector),
        linear_weight_only.OP: (x, int8[:, :32].to(torch.uint8), scales_of_groups, scales_of_groups.to(torch.uint8)),
        experts.OP: of_experts,
        EXPERTS_SUMMED.target: (*int8_experts, *scales),
        lora.OP: (x, x, torch.zeros(3, 4, 64), ids, torch.zeros(3, 4, 64)),
        add_norm.OP: (x, x, vector, vector, 1e-5),
        embed_norm.OP: ([weight, weight], [ids, ids], vector, vector, 1e-5),
        gated_act.OP: (x, "silu"),
        pool.OP: (x, cu_seqlens, "mean", True),
        max_logits.OP: (x.float(), weight.float(), vector, cu_seqlens),
        torch.ops.aten.layer_norm.default: (x, (64,), vector, vector),
    }


def test_launchers_read_nothing_from_the_device() -> None:
    """What is on no device at all cannot be read."""
    calls = describe_calls(torch.device("meta"))
    assert calls.keys() == TRITON_KERNELS.keys()
    for op, args in calls.items():
        out = op(*args)
        with recorded() as launches:
            TRITON_KERNELS[op](*args, out=out)
        assert launches


def test_no_number_of_rows_is_compiled_for() -> None:
    """Where Triton would tell multiples of 16 from other numbers."""
    variants = []
    for num_rows in (96, 100):
        with recorded() as launches:
            for op, args in describe_other_calls(num_rows).items():
                on_no_device = move(args, torch.device("meta"))
                TRITON_KERNELS[op](*on_no_device, out=op(*on_no_device))
        variants.append([name_variant(launch) for launch in launches])
    assert variants[0] == variants[1]


@pytest.mark.parametrize("make", [tiny_llama, pytest.param(tiny_bert, marks=pytest.mark.slow)])
def test_engine_computes_what_torchs_does(make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled and opened as for a device, and run in the interpreter; a generator over a cache by rows."""
    expected = build_and_run(make, "fp32", plain_backend(CPU), monkeypatch)
    found = build_and_run(make, "fp32", as_for_a_device(), monkeypatch)
    for actual, wanted in zip(found, expected, strict=True):
        check_close(actual, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("precision", KINDS)
def test_a_generator_in_fewer_bits(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = build_and_run(tiny_llama, "fp32", plain_backend(CPU), monkeypatch)
    found = build_and_run(tiny_llama, precision, as_for_a_device(), monkeypatch)
    for actual, wanted in zip(found, expected, strict=True):
        check_close(actual, wanted, tolerance=DECODER_TOLERANCES[precision], what=precision)


def as_for_a_device() -> Backend:
    return Backend(TRITON, CPU, load_kernels(), PASSES, kv_order="rows")


def build_and_run(
    make: Callable[[], nn.Module], precision: Precision, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> list[npt.NDArray[Any]]:
    limits = BatchLimits(max_batch_tokens=32, max_batch_requests=4, max_input_tokens=32, max_batch_logits=4)
    monkeypatch.setattr(build, "find_backend", lambda *_: backend)
    monkeypatch.setattr(build, "check_precision", lambda config: None)
    config = EngineConfig(precision=precision, cpu_kernels="torch")
    with captured_once(make):
        compiled = compile_model(make(), config, limits, lambda *_: None)
    engine = open_engine(compiled, config, limits, lambda *_: None)
    assert (engine.info.kernels, engine.info.precision) == (backend.name, precision)
    assert not engine.info.unplanned_ops
    with interpreted() if backend.name == TRITON else nullcontext():
        return run_steps(engine)


def run_steps(engine: Engine) -> list[npt.NDArray[Any]]:
    """What an encoder gives; and the logits of a generator after a prompt and a token."""
    batch = make_batch([5, 9], 3)
    if not isinstance(engine, DecoderEngine):
        return [engine.run(batch).arrays["embeddings"]]
    steps = [batch, make_batch([1, 1], 4)]
    num_blocks = engine.kv_cache.shape[1]
    paged = [page_alone(step, num_blocks=num_blocks, past=past) for step, past in zip(steps, (0, 9), strict=True)]
    return [engine.inner.compute(step, kv_cache=engine.kv_cache)["logits"].numpy().copy() for step in paged]
