"""The fused graph in planned memory: executes a Program step by step, writing into views of the arena."""

import math
from collections.abc import Callable, Sequence
from operator import itemgetter

import torch
from torch import Tensor

from runtime.batch import Batch, Output
from runtime.config import UnusableConfig
from runtime.engine import EngineError, EngineInfo, MemoryStats, Progress
from runtime.engines.transfer import find_shape, run_warmup, to_tensors
from runtime.memory.arena import Arena, CapExceeded
from runtime.memory.lifetimes import BatchShape, round_shape
from runtime.memory.planner import plan_region
from runtime.program import PlannedTensor, Program


class PlannedEngine:
    """Mutable: the arena, and nothing else. Not thread-safe; one caller at a time."""

    def __init__(
        self, program: Program, largest: BatchShape, device: torch.device, info: EngineInfo, cap_bytes: int | None
    ):
        self.program = program
        self.largest = largest
        self.device = device
        self.info = info
        arena_cap = None if cap_bytes is None else cap_bytes - program.unplanned_bytes(largest)
        self.arena: Arena[Tensor] = Arena(self.allocate, arena_cap)
        self.getters = [make_getter(instruction.args) for instruction in program.instructions]
        self.is_used = program.is_used
        self.place_of = {tensor.slot: index for index, tensor in enumerate(program.tensors)}

    def allocate(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def warmup(self, progress: Progress) -> None:
        """The largest shape comes first: its plan serves every batch that finds no better one, so none allocates."""
        self.arena.layout(self.largest, lambda: self.program.lifetimes(self.largest))
        run_warmup(self.run, self.largest, progress)

    def run(self, batch: Batch) -> Output:
        shape = find_shape(batch, self.largest)
        bucket = self.find_bucket(shape)
        try:
            layout = self.arena.layout(bucket, lambda: self.program.lifetimes(bucket))
            with torch.inference_mode():
                return self.execute(batch, shape, layout.places)
        except (CapExceeded, RuntimeError, IndexError) as error:
            raise EngineError(f"a step of {batch.num_seqs} sequences failed: {error}") from error

    def find_bucket(self, shape: BatchShape) -> BatchShape:
        """Rounded up, and without the numbers that no tensor's size depends on: fewer plans to make."""
        used = zip(shape, self.largest, self.is_used, strict=True)
        return round_shape(BatchShape(*(n if is_used else limit for n, limit, is_used in used)), self.largest)

    def execute(self, batch: Batch, shape: BatchShape, places: tuple[tuple[Tensor, int], ...]) -> Output:
        slots = list(self.program.slots)
        for slot, value in zip(self.program.input_slots, to_tensors(batch, self.device), strict=True):
            slots[slot] = value
        for instruction, getter in zip(self.program.instructions, self.getters, strict=True):
            if instruction.tensor is None:
                slots[instruction.slot] = instruction.run(*getter(slots))
            else:
                out = view_place(instruction.tensor, shape, *places[self.place_of[instruction.slot]])
                instruction.run(*getter(slots), out=out)
                slots[instruction.slot] = out
            for slot in instruction.frees:
                slots[slot] = None
        result = slots[self.program.output_slot]
        assert isinstance(result, Tensor)
        # A copy: the arena's memory belongs to the next step.
        return Output(result.to(device="cpu", dtype=torch.float32, copy=True).numpy())

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


def make_getter(args: tuple[int, ...]) -> Callable[[list[object]], Sequence[object]]:
    """Fetches argument slots in one call; a slice for one of them, because itemgetter would return it bare."""
    if not args:
        return lambda slots: ()
    return itemgetter(*args) if len(args) > 1 else itemgetter(slice(args[0], args[0] + 1))


def view_place(tensor: PlannedTensor, shape: BatchShape, buffer: Tensor, offset: int) -> Tensor:
    """The tensor of this batch's exact shape at its place in a chunk."""
    dims = [dim.evaluate(shape) for dim in tensor.dims]
    num_bytes = math.prod(dims) * tensor.dtype.itemsize
    return buffer[offset : offset + num_bytes].view(tensor.dtype).view(dims)


def peak_bytes(program: Program, shape: BatchShape) -> int:
    """Activation memory of a batch of this shape, planned or not, known before anything runs."""
    return plan_region(program.lifetimes(shape))[1] + program.unplanned_bytes(shape)


def fit_capacity(program: Program, wanted: BatchShape, min_tokens: int, cap_bytes: int | None) -> BatchShape:
    """The largest token budget up to `wanted` that fits the cap. Raises UnusableConfig where `min_tokens` do not."""
    if cap_bytes is None or peak_bytes(program, wanted) <= cap_bytes:
        return wanted

    def shrink(num_tokens: int) -> BatchShape:
        return BatchShape(num_tokens, min(wanted.num_seqs, num_tokens), min(wanted.max_seqlen, num_tokens))

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
