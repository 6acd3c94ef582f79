"""From a module and its configuration to an engine."""

from dataclasses import dataclass

import torch
from torch import nn

from runtime.capture import capture
from runtime.config import EngineConfig, UnusableConfig
from runtime.engine import Engine, EngineInfo, Progress
from runtime.engines.null import NullEngine
from runtime.engines.planned import PlannedEngine, fit_capacity, peak_bytes
from runtime.engines.reference import ReferenceEngine
from runtime.memory.lifetimes import BatchShape
from runtime.passes.pipeline import OnPass, PrecisionChoice, choose_precision, list_passes, run_passes
from runtime.program import Program, lower


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The largest batch the scheduler may form."""

    max_batch_tokens: int
    max_batch_requests: int
    max_input_tokens: int

    def largest(self) -> BatchShape:
        num_seqs = min(self.max_batch_requests, self.max_batch_tokens)
        return BatchShape(self.max_batch_tokens, num_seqs, self.max_input_tokens)


def build_engine(
    module: nn.Module, output_dim: int, config: EngineConfig, limits: BatchLimits, progress: Progress
) -> Engine:
    """Capture, rewrite, plan. Sets torch's thread count for this process. Raises UnusableConfig."""
    device = torch.device(config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnusableConfig(
            "engine.device cuda: this torch finds no CUDA device. Set device to cpu, or mend the driver"
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    choice = choose_precision(config.precision, device)
    module = module.eval().requires_grad_(False).to(device)
    if config.kind == "reference":
        return build_reference(module, output_dim, limits, device)
    progress("capturing the graph", 0, 3)
    graph_module = capture(module, device)
    progress("fusing", 1, 3)
    run_passes(graph_module, list_passes(choice, device), lambda name, graph: None)
    progress("planning memory", 2, 3)
    program = lower(graph_module)
    cap_bytes = None if config.memory_cap_mb is None else int(config.memory_cap_mb * 2**20)
    largest = fit_capacity(program, limits.largest(), limits.max_input_tokens, cap_bytes)
    info = describe(program, choice, largest, device)
    progress("planning memory", 3, 3)
    return PlannedEngine(program, largest, device, info, cap_bytes)


def describe(program: Program, choice: PrecisionChoice, largest: BatchShape, device: torch.device) -> EngineInfo:
    return EngineInfo(
        kind="planned",
        precision=choice.precision,
        precision_reason=choice.reason,
        device=str(device),
        threads=torch.get_num_threads(),
        output_dim=program.output_dim,
        weight_bytes=program.weight_bytes,
        activation_bytes=peak_bytes(program, largest),
        max_batch_tokens=largest.num_tokens,
        unplanned_ops=tuple(instruction.name for instruction in program.unplanned),
    )


def build_reference(module: nn.Module, output_dim: int, limits: BatchLimits, device: torch.device) -> Engine:
    weight_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
    info = EngineInfo(
        kind="reference",
        precision="fp32",
        precision_reason="the reference is always fp32",
        device=str(device),
        threads=torch.get_num_threads(),
        output_dim=output_dim,
        weight_bytes=weight_bytes,
        max_batch_tokens=limits.max_batch_tokens,
    )
    return ReferenceEngine(module, limits.largest(), device, info)


def build_null(output_dim: int, config: EngineConfig, limits: BatchLimits) -> Engine:
    info = EngineInfo(
        "null", "none", "computes nothing", "cpu", 1, output_dim, max_batch_tokens=limits.max_batch_tokens
    )
    return NullEngine(info, step_ms=config.null_step_ms, us_per_token=config.null_step_us_per_token)


def trace_passes(module: nn.Module, config: EngineConfig, on_pass: OnPass) -> Program:
    """Capture and rewrite without building an engine, for `padless graph`."""
    device = torch.device(config.device)
    graph_module = capture(module.eval().requires_grad_(False).to(device), device)
    run_passes(graph_module, list_passes(choose_precision(config.precision, device), device), on_pass)
    return lower(graph_module)
