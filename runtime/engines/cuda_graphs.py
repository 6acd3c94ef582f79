"""The planned engine with its small steps recorded as CUDA graphs: one call launches all of a step's kernels.

Launching kernels one by one takes Python longer than a device needs to compute a few tokens. A graph is recorded once
for each bucket and replayed on the same addresses: arena, inputs, constants and KV cache stay where they are.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from runtime.backends.backend import Kernel
from runtime.batch import Batch
from runtime.engine import EngineInfo, Progress
from runtime.engines.buckets import Bucket, Buckets, fill_up, make_scratch
from runtime.engines.failures import empty_cache
from runtime.engines.planned import PlannedEngine, peak_bytes
from runtime.engines.transfer import Staging, find_shape, take_arrays
from runtime.memory.lifetimes import SYMBOLS, BatchShape, align_up
from runtime.program import Program

logger = logging.getLogger("padless.engine")
Outputs = dict[str, Tensor]
Step = Callable[[], Outputs]
WORKSPACE_BYTES = 32 * 2**20
"""Of cuBLAS, for the stream that steps are recorded on: what torch takes on Hopper; elsewhere it is 8 MiB."""


class Recorder(Protocol):
    """Raises RuntimeError where a step cannot be recorded."""

    def record(self, step: Step) -> tuple[Callable[[], None], Outputs]:
        """What repeats the step on the device, and the memory in which it then leaves its outputs."""


class CudaRecorder:
    """Graphs of one device, which never run side by side and so share what torch allocates while they are recorded."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def record(self, step: Step) -> tuple[Callable[[], None], Outputs]:
        step()  # kernels are compiled and libraries take their workspaces, which must not happen while one is recorded
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            outputs = step()
        return graph.replay, outputs


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """`staging`: of this step alone, so that its inputs stay where the graph reads them."""

    replay: Callable[[], None]
    outputs: Outputs
    staging: Staging


def count_graph_bytes(program: Program, largest: BatchShape) -> int:
    """Of the device, beside the plan of the largest step, for the recorded steps of a program: inputs of each, and one
    pool for what kernels allocate while they run. That is at most as much as the largest recorded step's own plan: an
    estimate, until a device has been asked."""
    buckets = Buckets(largest, program.read_inputs).all
    if not buckets:
        return 0
    inputs = (make_scratch(bucket, program.read_inputs, program.num_features) for bucket in buckets)
    staged = sum(align_up(array.nbytes) for arrays in inputs for array in arrays.values())
    return staged + peak_bytes(program, buckets[0].shape) + WORKSPACE_BYTES


class CudaGraphsEngine(PlannedEngine):
    """Mutable besides: the recorded steps by bucket. Batches in none of them run as planned."""

    def __init__(
        self,
        program: Program,
        kernels: Mapping[object, Kernel],
        largest: BatchShape,
        device: torch.device,
        info: EngineInfo,
        cap_bytes: int | None,
        recorder: Recorder,
    ):
        super().__init__(program, kernels, largest, device, info, cap_bytes)
        self.recorder = recorder
        self.buckets = Buckets(largest, self.read)
        self.recorded: dict[Bucket, RecordedStep] = {}
        self.kept: dict[str, Tensor] = {}
        self.first_dims = {spec.name: spec.dims[0] for spec in program.outputs}

    def prepare(self, progress: Progress, **memory: Tensor) -> None:
        """The largest step's memory first: it has room for every other, so that none moves it. Then steps are recorded,
        the largest first, until one cannot be."""
        super().prepare(progress)
        self.kept = memory
        for index, bucket in enumerate(self.buckets.all):
            progress("recording CUDA graphs", index, len(self.buckets.all))
            try:
                self.recorded[bucket] = self.record(bucket)
            except RuntimeError as error:
                logger.warning(
                    "a step of %d tokens cannot be recorded as a CUDA graph; it and smaller ones run as planned: %s",
                    bucket.shape.num_tokens,
                    error,
                )
                break

    def record(self, bucket: Bucket) -> RecordedStep:
        """Raises RuntimeError."""
        shape, cache = self.drop_unused(bucket.shape), self.kept.get("kv_cache")
        layout = self.arena.layout(shape, lambda: self.program.lifetimes(shape))
        known = (*bucket.shape, bucket.max_blocks, 0 if cache is None else cache.shape[1])
        symbols = (*known, *[0] * (len(SYMBOLS) - len(known)))  # of sources, which no bucket has
        staging = Staging(self.device)
        with torch.inference_mode():
            inputs = staging.send(make_scratch(bucket, self.read, self.num_features))
            recorded = self.recorder.record(lambda: self.bound.run(symbols, layout, inputs, self.kept))
        return RecordedStep(*recorded, staging)

    def compute(self, batch: Batch, **memory: Tensor) -> Outputs:
        """See PlannedEngine."""
        shape = find_shape(batch, self.largest)
        bucket = self.buckets.find(batch)
        recorded = None if bucket is None else self.recorded.get(bucket)
        if bucket is None or recorded is None:
            return super().compute(batch, **memory)
        assert all(self.kept[name] is tensor for name, tensor in memory.items()), "A graph reads another cache."
        arrays = fill_up(take_arrays(batch, self.read, self.num_features), shape, bucket)
        try:
            with torch.inference_mode():
                recorded.staging.send(arrays)
                recorded.replay()
        except RuntimeError as error:
            raise self.explain(error, batch) from error
        sizes = shape._asdict()
        return {name: values[: sizes.get(str(self.first_dims[name]))] for name, values in recorded.outputs.items()}

    def give_back(self) -> None:
        """The arena stays, which graphs write to."""
        if self.recorded:
            empty_cache()
        else:
            super().give_back()

    def trim(self) -> None:
        if not self.recorded:
            super().trim()

    def close(self) -> None:
        self.recorded.clear()
        super().close()
