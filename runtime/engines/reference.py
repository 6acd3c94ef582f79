"""The module itself, op by op in plain PyTorch: the oracle that fast engines are compared with."""

import torch
from torch import Tensor, nn

from runtime.batch import Batch, Output
from runtime.engine import EngineError, EngineInfo, MemoryStats, Progress
from runtime.engines.transfer import find_shape, run_warmup, to_tensors
from runtime.memory.lifetimes import BatchShape
from runtime.threads import use_threads


class ReferenceEngine:
    def __init__(self, module: nn.Module, largest: BatchShape, device: torch.device, info: EngineInfo):
        self.module = module
        self.largest = largest
        self.device = device
        self.info = info

    def warmup(self, progress: Progress) -> None:
        run_warmup(self.run, self.largest, progress)

    def prepare(self) -> None:
        """Nothing is planned."""

    def run(self, batch: Batch) -> Output:
        return Output(self.compute(batch).to(device="cpu", dtype=torch.float32).numpy())

    def compute(self, batch: Batch, **memory: Tensor) -> Tensor:
        """See PlannedEngine."""
        find_shape(batch, self.largest)
        use_threads(self.info.threads)
        try:
            with torch.inference_mode():
                result: Tensor = self.module(**to_tensors(batch, self.device), **memory)
                return result
        except (RuntimeError, IndexError) as error:
            raise EngineError(f"a step of {batch.num_seqs} sequences failed: {error}") from error

    def memory(self) -> MemoryStats:
        return MemoryStats(weight_bytes=self.info.weight_bytes)

    def trim(self) -> None:
        """Nothing is held between steps."""

    def close(self) -> None:
        """Nothing to give back but the module itself."""
