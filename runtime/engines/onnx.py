"""A graph in ONNX Runtime: packed but for attention, which it pads by groups of similar length."""

import math

import numpy as np
import torch
from torch import Tensor

from runtime.backends.onnx.inputs import ATTENTION_INPUTS, CACHE, make_groups
from runtime.backends.onnx.session import Session
from runtime.batch import Arrays, Batch, Output
from runtime.engine import EngineError, EngineInfo, MemoryStats, Progress
from runtime.engines.transfer import find_shape, run_warmup, take_arrays, to_output
from runtime.memory.lifetimes import BatchShape


class OnnxEngine:
    """`num_features`: numbers of each row of features; 0 of a graph that reads token ids. One caller at a time.

    Mutable: the memory of outputs, which belongs to the next step.
    """

    def __init__(self, session: Session, largest: BatchShape, info: EngineInfo, num_features: int = 0) -> None:
        self.session = session
        self.largest = largest
        self.info = info
        self.num_features = num_features
        self.read = frozenset(session.inputs)
        self.caches = [name for name in session.outputs if name.startswith(f"{CACHE}.")]
        self.results: dict[str, Tensor] = {}

    def warmup(self, progress: Progress) -> None:
        run_warmup(self.run, self.largest, progress)

    def prepare(self, progress: Progress, **memory: Tensor) -> None:
        """ONNX Runtime takes memory as it needs it."""

    def run(self, batch: Batch) -> Output:
        return to_output(self.compute(batch), batch.outputs)

    def compute(self, batch: Batch, **memory: Tensor) -> dict[str, Tensor]:
        """See PlannedEngine."""
        shape = find_shape(batch, self.largest)
        inputs = take_arrays(batch, self.read, self.num_features) | self.describe(batch)
        results = {spec.name: self.reserve(spec.name, spec.dims, shape) for spec in self.info.outputs}
        # Each layer of the cache by itself, as what is read and what takes its place: nothing is copied.
        caches = {name: memory[CACHE][int(name.split(".")[1])].view(-1) for name in self.caches}
        try:
            self.session.run(inputs, results | caches)
        except RuntimeError as error:
            raise EngineError(f"a step of {batch.num_seqs} sequences failed: {error}") from error
        return results

    def describe(self, batch: Batch) -> Arrays:
        """What the graph reads beside the batch's own arrays."""
        found: Arrays = {"max_seqlen": np.array(batch.max_seqlen, np.int64)}
        if self.read & ATTENTION_INPUTS.keys():
            seen = batch.seqlens if batch.paging is None else batch.paging.cache_seqlens
            found |= make_groups(batch.seqlens, seen)
        return {name: array for name, array in found.items() if name in self.read}

    def reserve(self, name: str, dims: tuple[str | int, ...], shape: BatchShape) -> Tensor:
        """Memory of an output, which grows to the largest that was wanted."""
        sizes = shape._asdict()
        wanted = [sizes[dim] if isinstance(dim, str) else dim for dim in dims]
        count = math.prod(wanted)
        if name not in self.results or self.results[name].numel() < count:
            self.results[name] = torch.empty(count)
        return self.results[name][:count].view(wanted)

    def memory(self) -> MemoryStats:
        return MemoryStats(weight_bytes=self.info.weight_bytes)

    def trim(self) -> None:
        """Its memory is ONNX Runtime's."""

    def close(self) -> None:
        self.results.clear()
