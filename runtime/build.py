"""From a module and its configuration to an engine."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.fx import Graph, GraphModule

from runtime.batch import ArraySpec, Batch
from runtime.capture import Decodes, capture, describe_outputs, read_inputs
from runtime.config import EngineConfig, UnusableConfig
from runtime.device import check_device
from runtime.engine import Engine, EngineInfo, Progress
from runtime.engines.adaptive import AdaptiveEngine
from runtime.engines.decoder import DecoderEngine
from runtime.engines.null import NullEngine
from runtime.engines.null_decoder import NullDecoder
from runtime.engines.planned import PlannedEngine, fit_capacity, peak_bytes
from runtime.engines.reference import ReferenceEngine
from runtime.engines.speculating import SpeculatingEngine
from runtime.kernels.cpu.build import CannotBuild
from runtime.kernels.cpu.library import CpuLibrary, load_library
from runtime.kernels.table import list_kernels
from runtime.kv_cache.blocks import count_blocks
from runtime.kv_cache.budget import plan_blocks
from runtime.memory.lifetimes import BatchShape
from runtime.passes.pipeline import (
    OnPass,
    PrecisionChoice,
    Target,
    choose_precision,
    list_candidates,
    list_passes,
    run_passes,
)
from runtime.precision_choice import read_table, table_path
from runtime.program import Program, lower
from runtime.quantization.calibrate import find_vocab_size
from runtime.quantization.observe import random_batch
from runtime.quantization.scheme import fingerprint_weights, load_quantization

KV_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
USUAL_SEQLEN = 32
"""Tokens; of the sequences that precisions are compared on."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The largest batch the scheduler may form."""

    max_batch_tokens: int
    max_batch_requests: int
    max_input_tokens: int
    max_batch_logits: int = 0
    """Decoders: the most tokens of a step after which a next one is wanted."""

    def largest(self) -> BatchShape:
        num_seqs = min(self.max_batch_requests, self.max_batch_tokens)
        longest = min(self.max_input_tokens, self.max_batch_tokens)
        return BatchShape(self.max_batch_tokens, num_seqs, longest, self.max_batch_logits)

    @property
    def least_tokens(self) -> int:
        """A step must have room for these: the longest input, or one token of every answer."""
        return min(self.max_batch_logits, self.max_batch_tokens) or self.max_input_tokens


@dataclass(frozen=True, slots=True)
class DraftModel:
    """A small decoder that guesses for a large one, `num_tokens` at a time."""

    module: nn.Module
    num_tokens: int


def build_engine(
    module: nn.Module,
    config: EngineConfig,
    limits: BatchLimits,
    progress: Progress,
    draft: DraftModel | None = None,
) -> Engine:
    """Capture, rewrite, plan. Sets torch's thread count for this process. Raises UnusableConfig."""
    device = torch.device(config.device)
    check_device(device)
    if config.threads:
        torch.set_num_threads(config.threads)
    module = module.eval().requires_grad_(False).to(device)
    if isinstance(module, Decodes):
        return build_decoder(module, config, limits, progress, draft)
    if config.kind == "reference":
        return build_reference(module, limits, device, progress)
    library = find_library(config, device, progress)
    target = find_target(config, device, library)
    choices = list_candidates(device) if config.precision == "auto" else [choose_precision(config.precision, device)]
    graph_module = capture_module(module, device, progress)
    cap_bytes = find_cap(config, len(choices))
    if len(choices) == 1:
        return plan_engine(graph_module, choices[0], target, library, limits, cap_bytes)
    cache = find_table(graph_module, target, config, limits)
    known = read_table(cache)
    if known is not None and set(known.used) <= {choice.precision for choice in choices}:
        # What an earlier start has dropped is not made again.
        choices = [choice for choice in choices if choice.precision in known.used]
    engines: dict[str, PlannedEngine] = {}
    for index, choice in enumerate(choices):
        progress("fusing and planning", index, len(choices))
        engines[choice.precision] = plan_engine(copy_graph(graph_module), choice, target, library, limits, cap_bytes)
    progress("fusing and planning", len(choices), len(choices))
    return adapt(engines, graph_module, target, config, limits, cache)


def build_decoder(
    module: nn.Module,
    config: EngineConfig,
    limits: BatchLimits,
    progress: Progress,
    draft: DraftModel | None = None,
) -> Engine:
    """With a KV cache, shared out over both models where there is a draft model."""
    device = torch.device(config.device)
    modules = [module] if draft is None else [module, draft.module.eval().requires_grad_(False).to(device)]
    library = None if config.kind == "reference" else find_library(config, device, progress)
    inners = [build_logits(each, config, library, limits, progress) for each in modules]
    name = config.kv_cache.dtype
    dtypes = [KV_DTYPES[name] if name != "auto" else choose_cache_dtype(inner.info, dtype) for inner, dtype in inners]
    layouts = [each.kv_layout(dtype) for each, dtype in zip(modules, dtypes, strict=True) if isinstance(each, Decodes)]
    num_blocks = plan_blocks(
        config.kv_cache.budget_mb,
        block_bytes=sum(layout.block_bytes for layout in layouts),
        weight_bytes=sum(inner.info.weight_bytes for inner, _ in inners),
        activation_bytes=sum(inner.info.activation_bytes for inner, _ in inners),
        max_sequences=limits.max_batch_requests,
        max_input_tokens=limits.max_input_tokens,
    )
    engines = [
        DecoderEngine(inner, layout.allocate(num_blocks, device), name_dtype(layout.dtype))
        for (inner, _), layout in zip(inners, layouts, strict=True)
    ]
    return (
        engines[0]
        if draft is None
        else SpeculatingEngine(engines[0], engines[1], draft.num_tokens, limits.max_input_tokens)
    )


def build_logits(
    module: nn.Module,
    config: EngineConfig,
    library: CpuLibrary | None,
    limits: BatchLimits,
    progress: Progress,
) -> tuple[PlannedEngine | ReferenceEngine, torch.dtype]:
    """What computes logits, and the type it computes in. `auto` is the float type that the device multiplies best:
    INT8 has to be asked for."""
    device = torch.device(config.device)
    if config.kind == "reference":
        return build_reference(module, limits, device, progress), torch.float32
    target = find_target(config, device, library)
    choice = choose_float(device) if config.precision == "auto" else choose_precision(config.precision, device)
    if choice.precision == "int8":
        # All layers add to one sum, which 16 bits would wear away; beside the weights its rows are nothing to read.
        choice = PrecisionChoice("int8", torch.float32, "configured; what int8 layers hand on is fp32")
    graph_module = capture_module(module, device, progress)
    return plan_engine(graph_module, choice, target, library, limits, find_cap(config, 1)), choice.dtype


def capture_module(module: nn.Module, device: torch.device, progress: Progress) -> GraphModule:
    progress("capturing the graph", 0, 1)
    graph_module = capture(module, device)
    progress("capturing the graph", 1, 1)
    return graph_module


def choose_float(device: torch.device) -> PrecisionChoice:
    candidates = [choice for choice in list_candidates(device) if choice.precision != "int8"]
    return replace(candidates[-1], reason="auto: the float type that is fastest here; int8 has to be asked for")


def choose_cache_dtype(info: EngineInfo, dtype: torch.dtype) -> torch.dtype:
    """As exact as the rest: beside int8 weights fp32 would be wasted."""
    return torch.bfloat16 if info.precision == "int8" else dtype


def name_dtype(dtype: torch.dtype) -> str:
    return next(name for name, known in KV_DTYPES.items() if known == dtype)


def copy_graph(graph_module: GraphModule) -> GraphModule:
    """Its own nodes over the same weights: what passes replace in one is still there in the other."""
    graph = Graph()
    graph.output(graph.graph_copy(graph_module.graph, {}))
    return GraphModule(graph_module, graph)


def plan_engine(
    graph_module: GraphModule,
    choice: PrecisionChoice,
    target: Target,
    library: CpuLibrary | None,
    limits: BatchLimits,
    cap_bytes: int | None,
) -> PlannedEngine:
    """Rewrites `graph_module` in place."""
    run_passes(graph_module, list_passes(choice, target), lambda name, graph: None)
    kernels = list_kernels(library)
    program = lower(graph_module, kernels)
    largest = fit_capacity(program, limits.largest(), limits.least_tokens, cap_bytes)
    return PlannedEngine(
        program, kernels, largest, target.device, describe(program, choice, largest, target), cap_bytes
    )


def find_cap(config: EngineConfig, num_engines: int) -> int | None:
    """Bytes of activations for one of several engines; each keeps what it has once taken."""
    return None if config.memory_cap_mb is None else int(config.memory_cap_mb * 2**20) // num_engines


def adapt(
    engines: dict[str, PlannedEngine],
    captured: GraphModule,
    target: Target,
    config: EngineConfig,
    limits: BatchLimits,
    cache: Path,
) -> AdaptiveEngine:
    """One engine of several. Where there is a calibration, what it has measured on real texts counts for INT8."""
    return AdaptiveEngine(
        engines,
        partial(make_example, find_vocab_size(captured), limits),
        known_agreement=known_agreement(target),
        min_agreement=config.min_cosine,
        cache=cache,
    )


def find_table(captured: GraphModule, target: Target, config: EngineConfig, limits: BatchLimits) -> Path:
    """The file that remembers the choice for this model, configuration and machine."""
    weights = {name: value.detach() for name, value in captured.state_dict().items()}
    causes = (fingerprint_weights(weights), config, torch.__version__, target.isa, torch.get_num_threads(), limits)
    return table_path(*causes, known_agreement(target))


def known_agreement(target: Target) -> dict[str, float]:
    """As `measure_agreement` counts: for embeddings the cosine; for logits, whose cosine says little, by the error."""
    if target.quantization is None:
        return {}
    accuracy = target.quantization.accuracy
    return {"int8": accuracy.cosine_p1 if accuracy.agrees_on == "neighbours" else 1 - accuracy.error**2 / 2}


def make_example(vocab_size: int, limits: BatchLimits, num_tokens: int) -> Batch:
    """Sequences of random tokens, about `num_tokens` in all, of a usual length where the limits allow it."""
    seqlen = max(min(USUAL_SEQLEN, num_tokens), -(-num_tokens // limits.max_batch_requests))
    seqlen = min(seqlen, limits.max_input_tokens)
    return random_batch(vocab_size, min(num_tokens // seqlen, limits.max_batch_requests), seqlen)


def find_library(config: EngineConfig, device: torch.device, progress: Progress) -> CpuLibrary | None:
    """The compiled kernels, where the device is a CPU. Raises UnusableConfig."""
    try:
        return load_library(config.cpu_kernels, progress) if device.type == "cpu" else None
    except CannotBuild as error:
        raise UnusableConfig(
            f"engine.cpu_kernels {config.cpu_kernels}: {error}. Set cpu_kernels to auto, or to torch for none"
        ) from None


def find_target(config: EngineConfig, device: torch.device, library: CpuLibrary | None) -> Target:
    """What to rewrite for. Raises UnusableConfig where the calibration cannot be read."""
    quantization = load_quantization(config.quantization) if config.quantization else None
    if library is None:
        return Target(device, None, quantization)
    return Target(device, library.isa, quantization, library.round_channels)


def describe(program: Program, choice: PrecisionChoice, largest: BatchShape, target: Target) -> EngineInfo:
    return EngineInfo(
        kind="planned",
        precision=choice.precision,
        precision_reason=choice.reason,
        device=str(target.device),
        kernels=target.isa or "torch",
        threads=torch.get_num_threads(),
        outputs=program.outputs,
        weight_bytes=program.weight_bytes,
        activation_bytes=peak_bytes(program, largest),
        max_batch_tokens=largest.num_tokens,
        unplanned_ops=tuple(instruction.name for instruction in program.unplanned),
    )


def build_reference(
    module: nn.Module, limits: BatchLimits, device: torch.device, progress: Progress
) -> ReferenceEngine:
    """The module is captured to know what it reads and gives; it runs as it is."""
    graph_module = capture_module(module, device, progress)
    weight_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
    info = EngineInfo(
        kind="reference",
        precision="fp32",
        precision_reason="the reference is always fp32",
        device=str(device),
        threads=torch.get_num_threads(),
        outputs=describe_outputs(graph_module),
        weight_bytes=weight_bytes,
        max_batch_tokens=limits.max_batch_tokens,
    )
    return ReferenceEngine(module, read_inputs(graph_module), limits.largest(), device, info)


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


def trace_passes(module: nn.Module, config: EngineConfig, on_pass: OnPass) -> Program:
    """Capture and rewrite without building an engine, for `padless graph`."""
    device = torch.device(config.device)
    graph_module = capture(module.eval().requires_grad_(False).to(device), device)
    library = find_library(config, device, lambda *_: None)
    target = find_target(config, device, library)
    choice = choose_precision("fp32" if config.precision == "auto" else config.precision, device)
    run_passes(graph_module, list_passes(choice, target), on_pass)
    return lower(graph_module, list_kernels(library))
