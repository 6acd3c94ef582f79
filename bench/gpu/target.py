"""What is measured: a CUDA device, or the CPU with tiny sizes in its place, which shows only that everything runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

from runtime.backends.backend import Kernel
from runtime.backends.cuda.backend import find_precisions
from runtime.backends.cuda.library import load_kernels
from runtime.backends.plain.table import TORCH_KERNELS
from runtime.config import EngineConfig, EngineKind, Precision

Value = TypeVar("Value")
Run = Callable[[], object]


@dataclass(frozen=True)
class Target:
    is_dry: bool

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.is_dry else "cuda")

    @property
    def name(self) -> str:
        return "CPU, dry run" if self.is_dry else torch.cuda.get_device_name()

    @property
    def kernels(self) -> Mapping[object, Kernel]:
        return TORCH_KERNELS if self.is_dry else load_kernels()

    @property
    def kinds(self) -> tuple[EngineKind, ...]:
        """Of engines. CPUs have no graphs to record."""
        return ("planned",) if self.is_dry else ("planned", "cuda_graphs")

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Of encoders. CPUs have no kernels for fp16 and fp8."""
        if self.is_dry:
            return ("fp32", "bf16", "int8")
        return ("fp16", "bf16", "int8", "fp8") if self.has_fp8 else ("fp16", "bf16", "int8")

    @property
    def decoder_precisions(self) -> tuple[Precision, ...]:
        return ("bf16", "int8") if self.is_dry else ("bf16", "int4_weights", "int8_weights", "int8")

    @property
    def has_fp8(self) -> bool:
        """Whether it computes the op: CPUs do, by the reference."""
        return self.is_dry or "fp8" in find_precisions(self.device)

    def describe(self) -> dict[str, object]:
        """For results."""
        if self.is_dry:
            return {"name": self.name}
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "name": self.name,
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }

    def pick(self, full: Value, dry: Value) -> Value:
        return dry if self.is_dry else full

    def configure(self, kind: str, precision: Precision) -> EngineConfig:
        return EngineConfig.model_validate(
            {"kind": kind, "precision": precision, "device": self.device.type, "cpu_kernels": "torch"}
        )

    def synchronize(self) -> None:
        if not self.is_dry:
            torch.cuda.synchronize()

    def repeat(self, run: Run, times: int) -> Run:
        """So often in a row, waited for. On a device as one CUDA graph: the time is then the device's, and not that of
        Python, which launches short kernels more slowly than they run."""
        if self.is_dry:
            return run
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiled and warmed up, as captures want it
            run()
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(times):
                run()

        def replay() -> None:
            graph.replay()
            torch.cuda.synchronize()

        return replay
