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
from runtime.kernels.cpu.build import CannotBuild
from runtime.kernels.cpu.library import CpuLibrary, load_library
from runtime.kernels.table import list_kernels
from runtime.memory.lifetimes import BatchShape
from runtime.passes.pipeline import OnPass, PrecisionChoice, Target, choose_precision, list_passes, run_passes
from runtime.program import Program, lower
from runtime.quantization.scheme import load_quantization


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
    module = module.eval().requires_grad_(False).to(device)
    if config.kind == "reference":
        return build_reference(module, output_dim, limits, device)
    progress("capturing the graph", 0, 3)
    graph_module = capture(module, device)
    progress("fusing", 1, 3)
    library = find_library(config, device, progress)
    target = find_target(config, device, library)
    choice = choose_precision("fp32" if config.precision == "auto" else config.precision, device)
    run_passes(graph_module, list_passes(choice, target), lambda name, graph: None)
    progress("planning memory", 2, 3)
    program = lower(graph_module, list_kernels(library))
    cap_bytes = None if config.memory_cap_mb is None else int(config.memory_cap_mb * 2**20)
    largest = fit_capacity(program, limits.largest(), limits.max_input_tokens, cap_bytes)
    info = describe(program, choice, largest, device)
    progress("planning memory", 3, 3)
    return PlannedEngine(program, largest, device, info, cap_bytes)


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
    return Target(device, library.isa if library else None, quantization)


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
    library = find_library(config, device, lambda *_: None)
    target = find_target(config, device, library)
    choice = choose_precision("fp32" if config.precision == "auto" else config.precision, device)
    run_passes(graph_module, list_passes(choice, target), on_pass)
    return lower(graph_module, list_kernels(library))
