"""From a module and its configuration to an engine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.fx import Graph, GraphModule

from runtime.batch import ArraySpec, Batch
from runtime.capture import Decodes, capture, describe_outputs, read_inputs
from runtime.config import EngineConfig, Precision, UnusableConfig
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
from runtime.precision_choice import ChosenPrecision
from runtime.precision_trial import Samples, list_sizes, make_samples, try_engines
from runtime.program import Program, lower
from runtime.quantization.accuracy import Accuracy
from runtime.quantization.calibrate import find_vocab_size
from runtime.quantization.observe import random_batch
from runtime.quantization.scheme import load_quantization

KV_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
USUAL_SEQLEN = 32
"""Tokens; of the sequences that precisions are timed on."""


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


@dataclass(frozen=True, slots=True)
class Captured:
    """What the engines of one model have in common, whatever their precision."""

    graph_module: GraphModule
    target: Target
    library: CpuLibrary | None
    limits: BatchLimits
    config: EngineConfig

    def plan(self, choice: PrecisionChoice) -> PlannedEngine:
        """The only engine: rewrites the graph in place, so that weights of both are never there."""
        cap_bytes = find_cap(self.config, 1)
        return plan_engine(self.graph_module, choice, self.target, self.library, self.limits, cap_bytes)

    def plan_each(
        self, choices: Sequence[PrecisionChoice], progress: Progress, num_sharing: int
    ) -> dict[Precision, PlannedEngine]:
        """Engines side by side, each with its part of the memory if it is shared by `num_sharing`."""
        engines: dict[Precision, PlannedEngine] = {}
        cap_bytes = find_cap(self.config, num_sharing)
        for index, choice in enumerate(choices):
            progress("fusing and planning", index, len(choices))
            copy = copy_graph(self.graph_module)
            engines[choice.precision] = plan_engine(copy, choice, self.target, self.library, self.limits, cap_bytes)
        progress("fusing and planning", len(choices), len(choices))
        return engines


def build_engine(
    module: nn.Module,
    config: EngineConfig,
    limits: BatchLimits,
    progress: Progress,
    draft: DraftModel | None = None,
    chosen: ChosenPrecision | None = None,
) -> Engine:
    """Capture, rewrite, plan. Sets torch's thread count for this process. Raises UnusableConfig.

    `chosen`: what `choose_for` has said of this model. Where the precision is left to measurement and nothing was
    chosen yet, that is done here, on random tokens.
    """
    device = torch.device(config.device)
    if isinstance(module, Decodes):
        return build_decoder(prepare(module, config), config, limits, progress, draft)
    if config.kind == "reference":
        return build_reference(prepare(module, config), limits, device, progress)
    captured = capture_encoder(module, config, limits, progress)
    named = config.named_precision
    candidates = [choose_precision(named, device)] if named else list_candidates(device)
    if len(candidates) == 1:
        return captured.plan(candidates[0])
    return build_chosen(captured, chosen or try_precisions(captured, None, progress), progress)


def choose_for(
    module: nn.Module, config: EngineConfig, limits: BatchLimits, samples: Samples | None, progress: Progress
) -> ChosenPrecision:
    """The precision, or those by size of batch, that `build_engine` is to use for this encoder: measured on engines
    that are gone afterwards, and judged on `samples`, or random tokens. Raises UnusableConfig."""
    return try_precisions(capture_encoder(module, config, limits, progress), samples, progress)


def capture_encoder(module: nn.Module, config: EngineConfig, limits: BatchLimits, progress: Progress) -> Captured:
    """Raises UnusableConfig."""
    device = torch.device(config.device)
    module = prepare(module, config)
    library = find_library(config, device, progress)
    target = find_target(config, device, library)
    return Captured(capture_module(module, device, progress), target, library, limits, config)


def prepare(module: nn.Module, config: EngineConfig) -> nn.Module:
    """On its device, computing on as many threads as are configured. Raises UnusableConfig."""
    device = torch.device(config.device)
    check_device(device)
    if config.threads:
        torch.set_num_threads(config.threads)
    return module.eval().requires_grad_(False).to(device)


def try_precisions(captured: Captured, samples: Samples | None, progress: Progress) -> ChosenPrecision:
    """Each engine gets all of the memory that steps may take: they are not there to stay."""
    engines = captured.plan_each(list_candidates(captured.target.device), progress, 1)
    vocab_size, limits = find_vocab_size(captured.graph_module), captured.limits
    seqlen = min(USUAL_SEQLEN, limits.least_tokens, limits.max_batch_tokens)
    most = min(limits.max_batch_requests, limits.least_tokens // seqlen)
    largest = min(engine.info.max_batch_tokens for engine in engines.values())
    chosen = try_engines(
        engines,
        samples or make_samples(vocab_size, seqlen, most),
        [make_example(vocab_size, limits, num_tokens) for num_tokens in list_sizes(largest)],
        known_accuracy(captured.target),
        captured.config.accuracy,
        per_bucket=captured.config.precision == "auto_per_bucket",
        progress=progress,
    )
    for engine in engines.values():
        engine.close()
    return chosen


def build_chosen(captured: Captured, chosen: ChosenPrecision, progress: Progress) -> Engine:
    """Several engines in one where batches of different sizes run in different precisions."""
    choices = [
        replace(choose_precision(name, captured.target.device), reason="chosen for this model") for name in chosen.used
    ]
    if len(choices) > 1:
        return AdaptiveEngine(captured.plan_each(choices, progress, len(choices)), chosen)
    engine = captured.plan(choices[0])
    engine.info = replace(engine.info, chosen=chosen)
    return engine


def build_decoder(
    module: nn.Module,
    config: EngineConfig,
    limits: BatchLimits,
    progress: Progress,
    draft: DraftModel | None = None,
) -> Engine:
    """With a KV cache, shared out over both models where there is a draft model."""
    device = torch.device(config.device)
    modules = [module] if draft is None else [module, prepare(draft.module, config)]
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
    named = config.named_precision
    choice = choose_precision(named, device) if named else choose_float(device)
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


def known_accuracy(target: Target) -> dict[Precision, Accuracy]:
    """What `padless quantize` has measured on texts of the model's user."""
    quantization = target.quantization
    return {} if quantization is None or not quantization.accuracy.num_texts else {"int8": quantization.accuracy}


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
    choice = choose_precision(config.named_precision or "fp32", device)
    run_passes(graph_module, list_passes(choice, target), on_pass)
    return lower(graph_module, list_kernels(library))
