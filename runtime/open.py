"""From a compiled model to an engine: its kernels loaded, its memory taken. Needs no exporter and no passes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from runtime.backends.backend import Kernel
from runtime.backends.cpu.build import CannotBuild
from runtime.backends.cpu.library import CpuLibrary, load_library
from runtime.backends.cuda.library import TRITON, find_draw, find_penalise, find_precisions, load_kernels
from runtime.backends.onnx.session import Session
from runtime.backends.plain.table import TORCH_KERNELS
from runtime.batch import ArraySpec
from runtime.compiled import CompiledModel, CompiledProgram, OnnxProgram
from runtime.config import EngineConfig, UnusableConfig, explain_missing
from runtime.device import check_device
from runtime.engine import Engine, EngineInfo, Progress
from runtime.engines.adaptive import AdaptiveEngine
from runtime.engines.cuda_graphs import CudaGraphsEngine, CudaRecorder
from runtime.engines.decoder import Computes, DecoderEngine
from runtime.engines.null import NullEngine
from runtime.engines.null_decoder import NullDecoder
from runtime.engines.onnx import OnnxEngine
from runtime.engines.planned import PlannedEngine
from runtime.engines.speculating import SpeculatingEngine
from runtime.engines.token_counts import MAX_COUNTERS, TokenCounts
from runtime.kv_cache.blocks import count_blocks
from runtime.kv_cache.budget import plan_blocks
from runtime.kv_cache.layout import KVLayout
from runtime.limits import BatchLimits


def open_engine(compiled: CompiledModel, config: EngineConfig, limits: BatchLimits, progress: Progress) -> Engine:
    """Sets torch's thread count for this process. Raises UnusableConfig."""
    device = torch.device(config.device)
    set_up_torch(config)
    kernels = find_kernels(compiled, config, device, progress)
    if compiled.kv_layout is not None:
        models = [compiled] if compiled.draft is None else [compiled, compiled.draft]
        inners = [open_program(each.only, kernels, config) for each in models]
        layouts = [each.kv_layout for each in models if each.kv_layout is not None]
        encoder = None if compiled.encoder is None else open_program(compiled.encoder, kernels, config)
        return give_caches(inners, layouts, config, limits, compiled.num_drafts, encoder)
    engines = {name: open_program(program, kernels, config) for name, program in compiled.programs.items()}
    if len(engines) == 1:
        (engine,) = engines.values()
        engine.info = replace(engine.info, chosen=compiled.chosen)
        return engine
    assert compiled.chosen is not None, "Several programs were chosen by size of batch. This is a bug."
    return AdaptiveEngine(engines, compiled.chosen)


def set_up_torch(config: EngineConfig) -> None:
    """Raises UnusableConfig where there is no such device."""
    check_device(torch.device(config.device))
    if config.threads:
        torch.set_num_threads(config.threads)


def open_program(
    compiled: CompiledProgram, kernels: Mapping[object, Kernel], config: EngineConfig
) -> PlannedEngine | OnnxEngine:
    """Raises UnusableConfig."""
    if isinstance(compiled, OnnxProgram):
        session = Session(compiled.model, compiled.weights, config)
        info = replace(compiled.info, nodes=session.count_nodes())
        return OnnxEngine(session, compiled.largest, info, compiled.num_features)
    device, info = torch.device(config.device), replace(compiled.info, device=config.device_names[0])
    parts = compiled.program, kernels, compiled.largest, device, info, compiled.cap_bytes
    return CudaGraphsEngine(*parts, CudaRecorder()) if config.kind == "cuda_graphs" else PlannedEngine(*parts)


def find_kernels(
    compiled: CompiledModel, config: EngineConfig, device: torch.device, progress: Progress
) -> Mapping[object, Kernel]:
    """Those that the model was compiled for. Raises UnusableConfig where they are not to be had."""
    if config.kind == "onnxruntime":
        return {}
    info = next(iter(compiled.programs.values())).info
    if info.kernels == TRITON:
        check_instructions(info.precision, device)
        return load_kernels()
    library = find_library(config.model_copy(update={"cpu_kernels": info.kernels}), device, progress)
    return TORCH_KERNELS if library is None else TORCH_KERNELS | library.kernels


def check_instructions(precision: str, device: torch.device) -> None:
    """A model is compiled on the first of several devices. Raises UnusableConfig where another has no instructions for
    it."""
    if device.type == "cuda" and precision not in find_precisions(device):
        raise UnusableConfig(
            f"{explain_missing(precision)}, and the model was compiled on such a one. engine.devices has to name "
            "devices of one kind: name these alone, or set precision to what all of them compute in"
        )


def find_library(config: EngineConfig, device: torch.device, progress: Progress) -> CpuLibrary | None:
    """The compiled kernels, where the device is a CPU. Raises UnusableConfig."""
    try:
        return load_library(config.cpu_kernels, progress) if device.type == "cpu" else None
    except CannotBuild as error:
        raise UnusableConfig(
            f"engine.cpu_kernels {config.cpu_kernels}: {error}. Set cpu_kernels to auto, or to torch for none"
        ) from None


def give_caches(
    inners: Sequence[Computes],
    layouts: Sequence[KVLayout],
    config: EngineConfig,
    limits: BatchLimits,
    num_drafts: int,
    encoder: Computes | None = None,
) -> Engine:
    """A generator with its KV cache, which it shares with the draft model if there is one, or the encoder of its
    sources. Raises UnusableConfig."""
    infos = [each.info for each in (*inners, encoder) if each is not None]
    device = torch.device(config.device)
    counts = make_counts(infos[0], limits, device)
    num_blocks = plan_blocks(
        config.kv_cache.budget_mb,
        block_bytes=sum(layout.block_bytes for layout in layouts),
        weight_bytes=sum(info.weight_bytes for info in infos),
        activation_bytes=sum(info.activation_bytes for info in infos),
        max_sequences=limits.max_batch_requests,
        max_input_tokens=limits.max_input_tokens,
        max_source_tokens=limits.max_source_tokens,
        graph_bytes=sum(info.graph_bytes for info in infos),
        counter_bytes=0 if counts is None else counts.planned_bytes,
    )
    draw = find_draw(device)
    engines = [
        DecoderEngine(inner, layout.allocate(num_blocks, device), layout.dtype_name, encoder, draw, counting)
        for inner, layout, counting in zip(inners, layouts, (counts, None), strict=False)
    ]
    if len(engines) == 1:
        return engines[0]
    target, draft = engines
    return SpeculatingEngine(target, draft, num_drafts, limits.max_input_tokens)


def make_counts(info: EngineInfo, limits: BatchLimits, device: torch.device) -> TokenCounts | None:
    """Of the tokens before the rows of a generator, where its device keeps such; a draft's tokens have no penalties."""
    penalise = find_penalise(device)
    if penalise is None:
        return None
    num_counters, vocab_size = min(limits.max_batch_requests, MAX_COUNTERS), int(info.outputs[0].dims[-1])
    return TokenCounts(num_counters, vocab_size, limits.max_input_tokens, device, penalise)


def build_null(outputs: tuple[ArraySpec, ...], config: EngineConfig, limits: BatchLimits, replica: int = 0) -> Engine:
    """Gives `outputs`; a decoder where the limits say that there are logits."""
    num_blocks = 1 + limits.max_batch_requests * count_blocks(limits.max_input_tokens) if limits.max_batch_logits else 0
    info = EngineInfo(
        *("null", "none", "computes nothing", "cpu", 1, outputs),
        max_batch_tokens=limits.max_batch_tokens,
        num_blocks=num_blocks,
        max_batch_logits=limits.max_batch_logits,
    )
    engine = NullDecoder if num_blocks else NullEngine
    return engine(
        info,
        step_ms=config.null_step_ms,
        us_per_token=config.null_step_us_per_token,
        fail_token_id=config.null_fail_token_id,
        nan_token_id=config.null_nan_token_id,
        max_steps=1 if replica == config.null_failing_replica else None,
    )
