"""The module itself, op by op in plain PyTorch: the oracle that fast engines are compared with."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from runtime.batch import Batch, Output
from runtime.capture import count_features, list_inputs
from runtime.engine import EngineInfo, MemoryStats, Progress
from runtime.engines.failures import explain_failure
from runtime.engines.transfer import find_shape, run_warmup, take_arrays, to_output, to_tensors
from runtime.memory.lifetimes import BatchShape
from runtime.threads import use_threads


class ReferenceEngine:
    """`read`: the inputs of the module's forward that its answer depends on; the others are None where a batch lacks
    them."""

    def __init__(
        self, module: nn.Module, read: Collection[str], largest: BatchShape, device: torch.device, info: EngineInfo
    ):
        self.module = module
        self.read = read
        self.names = list_inputs(module)
        self.num_features = count_features(module)
        self.largest = largest
        self.device = device
        self.info = info

    def warmup(self, progress: Progress) -> None:
        run_warmup(self.run, self.largest, progress)

    def prepare(self, progress: Progress, **memory: Tensor) -> None:
        """Nothing is planned."""

    def run(self, batch: Batch) -> Output:
        return to_output(self.compute(batch), batch.outputs)

    def compute(self, batch: Batch, **memory: Tensor) -> dict[str, Tensor]:
        """See PlannedEngine."""
        find_shape(batch, self.largest)
        take_arrays(batch, self.read, self.num_features)
        use_threads(self.info.threads)
        try:
            with torch.inference_mode():
                inputs = to_tensors(batch, self.device) | memory
                outputs: dict[str, Tensor] = self.module(**{name: inputs.get(name) for name in self.names})
                return outputs
        except (RuntimeError, IndexError) as error:
            raise explain_failure(error, f"a step of {batch.num_seqs} sequences failed") from error

    def memory(self) -> MemoryStats:
        return MemoryStats(weight_bytes=self.info.weight_bytes)

    def trim(self) -> None:
        """Nothing is held between steps."""

    def close(self) -> None:
        """Nothing to give back but the module itself."""
