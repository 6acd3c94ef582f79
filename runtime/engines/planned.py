"""The fused graph in planned memory: plans and runs a Program for batches of any shape."""

from collections.abc import Mapping

import torch
from torch import Tensor

from runtime.backends.backend import Kernel
from runtime.batch import Batch, Output
from runtime.config import UnusableConfig
from runtime.engine import EngineError, EngineInfo, MemoryStats, OutOfMemory, Progress
from runtime.engines.bound import BoundProgram
from runtime.engines.failures import empty_cache, explain_failure
from runtime.engines.transfer import Staging, find_shape, run_warmup, take_arrays, to_output, wrap_arrays
from runtime.memory.arena import Arena, CapExceeded
from runtime.memory.lifetimes import BatchShape, round_shape
from runtime.memory.planner import plan_region
from runtime.program import Program
from runtime.threads import use_threads


class PlannedEngine:
    """Mutable: the arena and the program bound to it. Not thread-safe; one caller at a time."""

    def __init__(
        self,
        program: Program,
        kernels: Mapping[object, Kernel],
        largest: BatchShape,
        device: torch.device,
        info: EngineInfo,
        cap_bytes: int | None,
    ):
        self.program = program
        self.largest = largest
        self.device = device
        self.info = info
        arena_cap = None if cap_bytes is None else cap_bytes - program.unplanned_bytes(largest)
        self.bound = BoundProgram(program, kernels)
        self.send = Staging(device).send if device.type == "cuda" else wrap_arrays
        self.arena: Arena[Tensor] = Arena(self.allocate, arena_cap, self.bound.forget)
        self.is_used = program.is_used
        self.read = program.read_inputs
        self.num_features = program.num_features

    def allocate(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def warmup(self, progress: Progress) -> None:
        """The largest step's memory is taken: its plan serves every batch that finds no better one, so none allocates.
        Pages of it that no step has needed yet stay the system's."""
        self.prepare(progress)
        run_warmup(self.run, self.largest, progress)

    def prepare(self, progress: Progress, **memory: Tensor) -> None:
        """Plan the largest step and take its memory. `memory`: what `compute` is going to get."""
        self.arena.layout(self.largest, lambda: self.program.lifetimes(self.largest))

    def run(self, batch: Batch) -> Output:
        return to_output(self.compute(batch), batch.outputs)

    def compute(self, batch: Batch, **memory: Tensor) -> dict[str, Tensor]:
        """The outputs by name, in memory that belongs to the next step. `memory`: what the model keeps between steps.

        Raises EngineError, of its kinds OutOfMemory and DeviceLost too; ValueError where the batch is too large, or
        lacks what the model reads.
        """
        shape = find_shape(batch, self.largest)
        use_threads(self.info.threads)
        arrays = take_arrays(batch, self.read, self.num_features)
        bucket = round_shape(self.drop_unused(shape), self.largest)
        try:
            layout = self.arena.layout(bucket, lambda: self.program.lifetimes(bucket))
            with torch.inference_mode():
                return self.bound.run(list_symbols(shape, batch, memory), layout, self.send(arrays), memory)
        except (CapExceeded, RuntimeError, IndexError, ValueError) as error:
            raise self.explain(error, batch) from error

    def explain(self, error: Exception, batch: Batch) -> EngineError:
        """What to raise for it. Where memory has run out, all that can be had again is given back first."""
        failure = explain_failure(error, f"a step of {batch.num_seqs} sequences failed")
        if isinstance(failure, OutOfMemory):
            self.give_back()
        return failure

    def give_back(self) -> None:
        self.arena.release()
        empty_cache()

    def drop_unused(self, shape: BatchShape) -> BatchShape:
        """Without the numbers that no tensor's size depends on: fewer plans to make."""
        used = zip(shape, self.largest, self.is_used, strict=True)
        return BatchShape(*(n if is_used else limit for n, limit, is_used in used))

    def memory(self) -> MemoryStats:
        arena = self.arena
        return MemoryStats(
            weight_bytes=self.program.weight_bytes,
            arena_reserved_bytes=arena.reserved_bytes,
            arena_in_use_bytes=arena.in_use_bytes,
            planned_peak_bytes=self.info.activation_bytes,
            num_arena_allocations=arena.num_allocations,
            plan_cache_hits=arena.num_hits,
            plan_cache_misses=arena.num_misses,
        )

    def trim(self) -> None:
        self.arena.trim()

    def close(self) -> None:
        self.arena.release()


def list_symbols(shape: BatchShape, batch: Batch, memory: Mapping[str, Tensor]) -> tuple[int, ...]:
    """The values of SYMBOLS."""
    paging, cache = batch.paging, memory.get("kv_cache")
    max_blocks = 0 if paging is None else paging.block_table.shape[1]
    num_blocks = 0 if cache is None else cache.shape[1]
    if paging is None or paging.sources is None:
        return (*shape, max_blocks, num_blocks, 0, 0)
    sources = paging.sources
    return (*shape, max_blocks, num_blocks, sources.source_table.shape[1], len(sources.weight_rows))


def peak_bytes(program: Program, shape: BatchShape) -> int:
    """Activation memory of a batch of this shape, planned or not, known before anything runs."""
    return plan_region(program.lifetimes(shape))[1] + program.unplanned_bytes(shape)


def fit_capacity(program: Program, wanted: BatchShape, min_tokens: int, cap_bytes: int | None) -> BatchShape:
    """The largest token budget up to `wanted` that fits the cap. Raises UnusableConfig where `min_tokens` do not."""
    if cap_bytes is None or peak_bytes(program, wanted) <= cap_bytes:
        return wanted

    def shrink(num_tokens: int) -> BatchShape:
        num_seqs, max_seqlen = min(wanted.num_seqs, num_tokens), min(wanted.max_seqlen, num_tokens)
        return BatchShape(num_tokens, num_seqs, max_seqlen, wanted.num_logits)

    least = peak_bytes(program, shrink(min_tokens))
    if least > cap_bytes:
        raise UnusableConfig(
            f"engine.memory_cap_mb: one input of {min_tokens} tokens needs {least / 2**20:.1f} MB of activations, over "
            f"the cap of {cap_bytes / 2**20:.1f} MB. Raise memory_cap_mb or lower limits.max_input_tokens"
        )
    fits, too_many = min_tokens, wanted.num_tokens
    while too_many - fits > 8:
        middle = (fits + too_many) // 2
        if peak_bytes(program, shrink(middle)) <= cap_bytes:
            fits = middle
        else:
            too_many = middle
    return shrink(fits)
