"""A graph in ONNX Runtime: packed but for attention, which it pads by groups of similar length."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from runtime.backends.onnx.groups import ATTENTION_INPUTS, make_groups
from runtime.backends.onnx.lowering import CACHE
from runtime.batch import Arrays, Batch, Output
from runtime.engine import EngineError, EngineInfo, MemoryStats, Progress
from runtime.engines.transfer import find_shape, run_warmup, take_arrays, to_output
from runtime.memory.lifetimes import BatchShape


class OnnxEngine:
    """`num_features`: numbers of each row of features; 0 of a graph that reads token ids. One caller at a time.

    Mutable: the memory of outputs, which belongs to the next step.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, largest: BatchShape, info: EngineInfo, num_features: int = 0
    ) -> None:
        self.session = session
        self.largest = largest
        self.info = info
        self.num_features = num_features
        self.read = frozenset(each.name for each in session.get_inputs())
        self.written = [each.name for each in session.get_outputs() if each.name.startswith(CACHE)]
        self.results: dict[str, Tensor] = {}

    def warmup(self, progress: Progress) -> None:
        run_warmup(self.run, self.largest, progress)

    def prepare(self) -> None:
        """ONNX Runtime takes memory as it needs it."""

    def run(self, batch: Batch) -> Output:
        return to_output(self.compute(batch), batch.outputs)

    def compute(self, batch: Batch, **memory: Tensor) -> dict[str, Tensor]:
        """See PlannedEngine."""
        shape = find_shape(batch, self.largest)
        arrays = take_arrays(batch, self.read, self.num_features)
        binding = self.session.io_binding()
        for name, array in {**arrays, **self.describe_batch(batch)}.items():
            binding.bind_cpu_input(name, array)
        if CACHE in memory:
            self.bind_cache(binding, memory[CACHE])
        results = self.bind_results(binding, shape)
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:  # of classes that ONNX Runtime does not name
            raise EngineError(f"a step of {batch.num_seqs} sequences failed: {error}") from error
        return results

    def describe_batch(self, batch: Batch) -> Arrays:
        """What the graph reads beside the batch's own arrays."""
        found: Arrays = {"max_seqlen": np.array(batch.max_seqlen, np.int64)}
        if self.read & ATTENTION_INPUTS.keys():
            seen = batch.seqlens if batch.paging is None else batch.paging.cache_seqlens
            found |= make_groups(batch.seqlens, seen).arrays
        return {name: array for name, array in found.items() if name in self.read}

    def bind_cache(self, binding: onnxruntime.IOBinding, cache: Tensor) -> None:
        """Each layer by itself, as an input and as the output that takes its place: nothing is copied."""
        for name in self.written:
            layer = cache[int(name.split(".")[1])]
            place = ("cpu", 0, np.float32, [layer.numel()], layer.data_ptr())
            binding.bind_input(name.removesuffix(".out"), *place)
            binding.bind_output(name, *place)

    def bind_results(self, binding: onnxruntime.IOBinding, shape: BatchShape) -> dict[str, Tensor]:
        sizes = shape._asdict()
        results = {}
        for spec in self.info.outputs:
            dims = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.dims]
            count = int(np.prod(dims))
            if self.results.get(spec.name, torch.empty(0)).numel() < count:
                self.results[spec.name] = torch.empty(count)
            results[spec.name] = self.results[spec.name][:count].view(dims)
            binding.bind_output(spec.name, "cpu", 0, np.float32, dims, results[spec.name].data_ptr())
        return results

    def memory(self) -> MemoryStats:
        return MemoryStats(weight_bytes=self.info.weight_bytes)

    def trim(self) -> None:
        """Its memory is ONNX Runtime's."""

    def close(self) -> None:
        self.results.clear()
