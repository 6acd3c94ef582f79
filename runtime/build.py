"""From a module and its configuration to a compiled model: capture, rewrite, plan; and to the engine of one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.fx import Graph, GraphModule

from runtime.backends.backend import Backend
from runtime.backends.onnx.backend import export_program
from runtime.backends.onnx.inputs import ONNX_RUNTIME
from runtime.batch import Batch
from runtime.build_reference import build_reference
from runtime.capture import UNREAD, Decodes, capture, capture_module, count_features, retype_cache
from runtime.compiled import CompiledModel, CompiledProgram, OnnxProgram, PlannedProgram
from runtime.config import EngineConfig, Precision, UnusableConfig, check_precision
from runtime.engine import Engine, EngineInfo, Progress
from runtime.engines.cuda_graphs import count_graph_bytes
from runtime.engines.onnx import OnnxEngine
from runtime.engines.planned import PlannedEngine, fit_capacity, peak_bytes
from runtime.fp16_range import check_generator, check_range, hear_noise
from runtime.kv_cache.layout import KV_DTYPES
from runtime.lazy_module import DraftModel, LazyModule, as_lazy
from runtime.limits import BatchLimits
from runtime.lower import lower
from runtime.memory.lifetimes import BatchShape
from runtime.open import open_engine, open_program, set_up_torch
from runtime.passes.pipeline import (
    OnPass,
    PrecisionChoice,
    choose_precision,
    list_candidates,
    list_passes,
    run_passes,
)
from runtime.precision_choice import ChosenPrecision
from runtime.precision_trial import Samples, list_sizes, make_samples, try_engines
from runtime.program import Program, share_constants
from runtime.quantization.accuracy import Accuracy
from runtime.quantization.calibrate import find_vocab_size
from runtime.quantization.observe import random_batch
from runtime.quantization.scheme import Quantization, load_quantization
from runtime.targets import find_backend

USUAL_SEQLEN = 32
"""Tokens; of the sequences that precisions are timed on."""
RANGE_TOKENS = 512
"""At most; of the batch that shows whether fp16 has numbers for a model."""


@dataclass(frozen=True, slots=True)
class Captured:
    """What the programs of one model have in common, whatever their precision."""

    graph_module: GraphModule
    backend: Backend
    quantization: Quantization | None
    limits: BatchLimits
    config: EngineConfig

    def plan(self, choice: PrecisionChoice, num_sharing: int = 1) -> CompiledProgram:
        """The only program: rewrites the graph in place, so that weights of both are never there."""
        return self.plan_graph(self.graph_module, choice, find_cap(self.config, num_sharing))

    def plan_each(
        self, choices: Sequence[PrecisionChoice], progress: Progress, num_sharing: int
    ) -> dict[Precision, CompiledProgram]:
        """Programs side by side, each with its part of the memory if it is shared by `num_sharing`."""
        programs: dict[Precision, CompiledProgram] = {}
        cap_bytes = find_cap(self.config, num_sharing)
        for index, choice in enumerate(choices):
            progress("fusing and planning", index, len(choices))
            programs[choice.precision] = self.plan_graph(copy_graph(self.graph_module), choice, cap_bytes)
        progress("fusing and planning", len(choices), len(choices))
        return programs

    def plan_graph(self, graph_module: GraphModule, choice: PrecisionChoice, cap_bytes: int | None) -> CompiledProgram:
        run_passes(graph_module, list_passes(choice, self.backend, self.quantization), lambda name, graph: None)
        program = lower(graph_module, self.backend.kernels)
        if self.config.kind == "onnxruntime":
            largest = self.limits.largest()
            return export_program(graph_module, largest, describe(program, choice, largest, self.backend))
        wanted = self.limits.largest()
        if self.config.kind == "cuda_graphs":  # the fullest batch has room for a scratch sequence, too
            wanted = wanted._replace(num_seqs=min(wanted.num_seqs + 1, wanted.num_tokens))
        largest = fit_capacity(program, wanted, self.limits.least_tokens, cap_bytes)
        graph_bytes = count_graph_bytes(program, largest) if self.config.kind == "cuda_graphs" else 0
        described = describe(program, choice, largest, self.backend)
        info = replace(described, kind=self.config.kind, graph_bytes=graph_bytes)
        return PlannedProgram(program, largest, info, cap_bytes)

    def make_range_example(self, choice: PrecisionChoice) -> Batch | None:
        """Random tokens, on which fp16 is tried; made while the graph is as captured. None: of other types nothing is
        looked at."""
        if choice.precision != "fp16":
            return None
        num_tokens = min(RANGE_TOKENS, self.limits.least_tokens)
        return make_example(find_vocab_size(self.graph_module), self.limits, num_tokens)

    def make_sources(self, num_features: int, num_seqs: int) -> Batch:
        """Of the encoder of an encoder-decoder: at most `num_seqs` random sources, for the same."""
        num_tokens = min(RANGE_TOKENS, self.limits.max_input_tokens, self.limits.max_batch_tokens)
        num_seqs = min(num_seqs, num_tokens)
        seqlen = num_tokens // num_seqs
        if num_features:
            return hear_noise(num_seqs, seqlen, num_features)
        return random_batch(find_vocab_size(self.graph_module), num_seqs, seqlen)

    def open(self, planned: CompiledProgram) -> PlannedEngine | OnnxEngine:
        return open_program(planned, self.backend.kernels, self.config)


def build_engine(
    model: nn.Module | LazyModule,
    config: EngineConfig,
    limits: BatchLimits,
    progress: Progress,
    draft: DraftModel | None = None,
    chosen: ChosenPrecision | None = None,
) -> Engine:
    """Compile and open, in this process. Raises UnusableConfig."""
    if config.kind == "reference":
        return build_reference(model, config, limits, progress, draft)
    return open_engine(compile_model(model, config, limits, progress, draft, chosen), config, limits, progress)


def compile_model(
    model: nn.Module | LazyModule,
    config: EngineConfig,
    limits: BatchLimits,
    progress: Progress,
    draft: DraftModel | None = None,
    chosen: ChosenPrecision | None = None,
    samples: Samples | None = None,
) -> CompiledModel:
    """Capture, rewrite, plan. Sets torch's thread count for this process. A LazyModule cannot run afterwards.

    Raises UnusableConfig, and what reading weights does.

    Where an encoder's precision is left to measurement and not `chosen`, it is measured, and judged on `samples`, or
    random tokens.
    """
    captured = capture_model(model, config, limits, progress)
    backend, named = captured.backend, config.named_precision
    if isinstance(as_lazy(model).module, Decodes):
        return compile_generator(as_lazy(model), captured, progress, draft)
    candidates = [choose_precision(named, backend)] if named else list_candidates(backend)
    tried: dict[Precision, CompiledProgram] = {}
    if len(candidates) > 1:
        if chosen is None:
            tried = captured.plan_each(candidates, progress, 1)
            chosen = try_precisions(captured, tried, samples, progress)
        candidates = [replace(choose_precision(name, backend), reason="chosen for this model") for name in chosen.used]
    if len(candidates) == 1:
        (choice,) = candidates
        example = captured.make_range_example(choice)
        planned = tried.get(choice.precision) or captured.plan(choice)
        if example is not None:
            check_range(captured.open(planned), example)
        info = replace(planned.info, precision_reason=choice.reason)
        return CompiledModel({choice.precision: replace(planned, info=info)}, chosen)
    return CompiledModel(captured.plan_each(candidates, progress, len(candidates)), chosen)


def compile_generator(
    model: LazyModule, captured: Captured, progress: Progress, draft: DraftModel | None
) -> CompiledModel:
    """As `compile_model`."""
    config, limits, backend = captured.config, captured.limits, captured.backend
    assert isinstance(model.module, Decodes)
    choice = choose_for_generation(config.named_precision, backend)
    layout = replace(model.module.kv_layout(choose_cache_dtype(config, choice)), order=backend.kv_order)
    retype_cache(captured.graph_module, layout)
    example = captured.make_range_example(choice)
    guessing = None if draft is None else compile_model(draft.model, config, limits, progress)
    planned = captured.plan(choice, num_sharing=1 if model.encoder is None else 2)
    encoder, sources = None, None
    if model.encoder is not None:
        of_sources = capture_model(model.encoder, config, limits.of_sources(), progress)
        retype_cache(of_sources.graph_module, layout)
        if example is not None:
            sources = of_sources.make_sources(count_features(model.encoder.module), example.num_seqs)
        encoder = share_weights(of_sources.plan(choice, num_sharing=2), planned)
    if example is not None:
        opened = None if encoder is None else captured.open(encoder)
        check_generator(captured.open(planned), example, layout, backend.device, opened, sources)
    num_drafts = 0 if draft is None else draft.num_tokens
    return CompiledModel({choice.precision: planned}, None, layout, guessing, num_drafts, encoder)


def share_weights(encoder: CompiledProgram, decoder: CompiledProgram) -> CompiledProgram:
    """Of an encoder-decoder: the encoder with those that are the decoder's too there once, where we hold them."""
    if isinstance(encoder, OnnxProgram) or isinstance(decoder, OnnxProgram):
        return encoder
    program = share_constants(encoder.program, decoder.program)
    return replace(encoder, program=program, info=replace(encoder.info, weight_bytes=program.weight_bytes))


def capture_model(
    model: nn.Module | LazyModule, config: EngineConfig, limits: BatchLimits, progress: Progress
) -> Captured:
    """Raises UnusableConfig."""
    set_up_torch(config)
    check_precision(config)
    backend = find_backend(config, progress)
    quantization = load_quantization(config.quantization) if config.quantization else None
    return Captured(capture_module(model, backend.device, progress), backend, quantization, limits, config)


def try_precisions(
    captured: Captured, programs: Mapping[Precision, CompiledProgram], samples: Samples | None, progress: Progress
) -> ChosenPrecision:
    """Each program gets all of the memory that steps may take: the others are not there to stay."""
    backend, limits = captured.backend, captured.limits
    engines = {name: open_program(each, backend.kernels, captured.config) for name, each in programs.items()}
    vocab_size = find_vocab_size(captured.graph_module)
    seqlen = min(USUAL_SEQLEN, limits.least_tokens, limits.max_batch_tokens)
    most = min(limits.max_batch_requests, limits.least_tokens // seqlen)
    largest = min(engine.info.max_batch_tokens for engine in engines.values())
    chosen = try_engines(
        engines,
        samples or make_samples(vocab_size, seqlen, most),
        [make_example(vocab_size, limits, num_tokens) for num_tokens in list_sizes(largest)],
        known_accuracy(captured.quantization),
        captured.config.accuracy,
        per_bucket=captured.config.precision == "auto_per_bucket",
        progress=progress,
    )
    for engine in engines.values():
        engine.close()
    return chosen


def choose_for_generation(named: Precision | None, backend: Backend) -> PrecisionChoice:
    """`auto` is the float type that the device multiplies best: INT8 has to be asked for."""
    if named is None:
        candidates = [choice for choice in list_candidates(backend) if choice.precision != "int8"]
        return replace(candidates[-1], reason="auto: the float type that is fastest here; int8 has to be asked for")
    if named == "int8":
        # All layers add to one sum, which 16 bits would wear away; beside the weights its rows are nothing to read.
        return PrecisionChoice("int8", torch.float32, "configured; what int8 layers hand on is fp32")
    return choose_precision(named, backend)


def choose_cache_dtype(config: EngineConfig, choice: PrecisionChoice) -> torch.dtype:
    """`auto`: as exact as the rest. Beside int8 weights fp32 would be wasted. Raises UnusableConfig."""
    if config.kind == "onnxruntime":
        if config.kv_cache.dtype not in ("auto", "fp32"):
            raise UnusableConfig(
                f"engine.kv_cache.dtype {config.kv_cache.dtype} has no operators with engine.kind onnxruntime. Set "
                "it to fp32 or auto"
            )
        return torch.float32
    if config.kv_cache.dtype != "auto":
        return KV_DTYPES[config.kv_cache.dtype]
    return torch.bfloat16 if choice.precision == "int8" else choice.dtype


def copy_graph(graph_module: GraphModule) -> GraphModule:
    """Its own nodes over the same weights: what passes replace in one is still there in the other."""
    graph = Graph()
    graph.output(graph.graph_copy(graph_module.graph, {}))
    copy = GraphModule(graph_module, graph)
    copy.meta[UNREAD] = dict(graph_module.meta[UNREAD])
    return copy


def find_cap(config: EngineConfig, num_engines: int) -> int | None:
    """Bytes of activations for one of several engines; each keeps what it has once taken."""
    return None if config.memory_cap_mb is None else int(config.memory_cap_mb * 2**20) // num_engines


def known_accuracy(quantization: Quantization | None) -> dict[Precision, Accuracy]:
    """What `padless quantize` has measured on texts of the model's user."""
    return {} if quantization is None or not quantization.accuracy.num_texts else {"int8": quantization.accuracy}


def make_example(vocab_size: int, limits: BatchLimits, num_tokens: int) -> Batch:
    """Sequences of random tokens, about `num_tokens` in all, of a usual length where the limits allow it."""
    seqlen = max(min(USUAL_SEQLEN, num_tokens), -(-num_tokens // limits.max_batch_requests))
    seqlen = min(seqlen, limits.max_input_tokens)
    return random_batch(vocab_size, min(num_tokens // seqlen, limits.max_batch_requests), seqlen)


def describe(program: Program, choice: PrecisionChoice, largest: BatchShape, backend: Backend) -> EngineInfo:
    return EngineInfo(
        kind="onnxruntime" if backend.name == ONNX_RUNTIME else "planned",
        precision=choice.precision,
        precision_reason=choice.reason,
        device=str(backend.device),
        kernels=backend.name,
        threads=torch.get_num_threads(),
        outputs=program.outputs,
        weight_bytes=program.weight_bytes,
        activation_bytes=peak_bytes(program, largest),
        max_batch_tokens=largest.num_tokens,
        unplanned_ops=tuple(instruction.name for instruction in program.unplanned),
    )


def fuse(
    model: nn.Module | LazyModule, config: EngineConfig, backend: Backend, on_pass: OnPass = lambda *_: None
) -> GraphModule:
    """Capture and rewrite, and nothing more. Raises UnusableConfig."""
    check_precision(config)
    graph_module = capture(model, backend.device)
    quantization = load_quantization(config.quantization) if config.quantization else None
    choice = choose_precision(config.named_precision or "fp32", backend)
    run_passes(graph_module, list_passes(choice, backend, quantization), on_pass)
    return graph_module


def trace_passes(model: nn.Module | LazyModule, config: EngineConfig, on_pass: OnPass) -> Program:
    """Capture and rewrite without building an engine, for `padless graph`."""
    backend = find_backend(config, lambda *_: None)
    return lower(fuse(model, config, backend, on_pass), backend.kernels)
