"""The fused graph in planned memory: executes a Program step by step, writing into views of the arena."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from operator import itemgetter

import torch
from torch import Tensor

from runtime.batch import Batch, Output
from runtime.config import UnusableConfig
from runtime.engine import EngineError, EngineInfo, MemoryStats, Progress
from runtime.engines.transfer import find_shape, run_warmup, to_tensors
from runtime.memory.arena import Arena, CapExceeded, Layout
from runtime.memory.lifetimes import ALIGNMENT, BatchShape, round_shape
from runtime.memory.planner import plan_region
from runtime.program import Instruction, Program

MAX_BOUND = 64
"""Shapes whose views are kept; a few hundred bytes for each tensor."""


class PlannedEngine:
    """Mutable: the arena, and the views into it. Not thread-safe; one caller at a time."""

    def __init__(
        self, program: Program, largest: BatchShape, device: torch.device, info: EngineInfo, cap_bytes: int | None
    ):
        self.program = program
        self.largest = largest
        self.device = device
        self.info = info
        arena_cap = None if cap_bytes is None else cap_bytes - program.unplanned_bytes(largest)
        self.arena: Arena[Tensor] = Arena(self.allocate, arena_cap)
        self.steps, self.view_steps = split_steps(program)
        self.is_used = program.is_used
        self.bound: OrderedDict[BatchShape, list[object]] = OrderedDict()

    def allocate(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def warmup(self, progress: Progress) -> None:
        """The largest shape comes first: its plan serves every batch that finds no better one, so none allocates."""
        self.prepare()
        run_warmup(self.run, self.largest, progress)

    def prepare(self) -> None:
        """Plan the largest step and take its memory."""
        self.arena.layout(self.largest, lambda: self.program.lifetimes(self.largest))

    def run(self, batch: Batch) -> Output:
        return Output(self.compute(batch).to(device="cpu", dtype=torch.float32, copy=True).numpy())

    def compute(self, batch: Batch, **memory: Tensor) -> Tensor:
        """The result, in memory that belongs to the next step. `memory`: what the model keeps between steps, by name.

        Raises EngineError; ValueError where the batch is too large.
        """
        shape = self.drop_unused(find_shape(batch, self.largest))
        try:
            with torch.inference_mode():
                return self.execute(batch, memory, self.bind(shape, round_shape(shape, self.largest)))
        except (CapExceeded, RuntimeError, IndexError, ValueError) as error:
            raise EngineError(f"a step of {batch.num_seqs} sequences failed: {error}") from error

    def drop_unused(self, shape: BatchShape) -> BatchShape:
        """Without the numbers that no tensor's size depends on: fewer plans to make."""
        used = zip(shape, self.largest, self.is_used, strict=True)
        return BatchShape(*(n if is_used else limit for n, limit, is_used in used))

    def bind(self, shape: BatchShape, bucket: BatchShape) -> list[object]:
        """The slots with every planned tensor of this exact shape at its place, and the views of them.

        Kept for the shapes used last: making some ninety views takes longer than computing a short sequence.
        """
        if bucket not in self.arena.layouts:
            self.bound.clear()  # planning it may replace the chunks, and views would hold on to the old ones
        layout = self.arena.layout(bucket, lambda: self.program.lifetimes(bucket))
        slots = self.bound.get(shape)
        if slots is None:
            slots = self.bound[shape] = self.make_views(shape, layout)
            if len(self.bound) > MAX_BOUND:
                self.bound.popitem(last=False)
        self.bound.move_to_end(shape)
        return slots

    def make_views(self, shape: BatchShape, layout: Layout[Tensor]) -> list[object]:
        slots = list(self.program.slots)
        typed: dict[tuple[int, torch.dtype], Tensor] = {}
        for tensor, (buffer, offset) in zip(self.program.tensors, layout.places, strict=True):
            key = (id(buffer), tensor.dtype)
            if key not in typed:
                typed[key] = buffer[: len(buffer) // ALIGNMENT * ALIGNMENT].view(tensor.dtype)
            dims = [dim.evaluate(shape) for dim in tensor.dims]
            strides = [math.prod(dims[index + 1 :]) for index in range(len(dims))]
            slots[tensor.slot] = typed[key].as_strided(dims, strides, offset // tensor.dtype.itemsize)
        for instruction, getter in self.view_steps:
            slots[instruction.slot] = instruction.run(*getter(slots))
        return slots

    def execute(self, batch: Batch, memory: dict[str, Tensor], bound: list[object]) -> Tensor:
        slots = list(bound)
        inputs = to_tensors(batch, self.device) | memory
        for name, slot in self.program.input_slots.items():
            slots[slot] = inputs[name]
        for instruction, getter in self.steps:
            if instruction.tensor is None:
                slots[instruction.slot] = instruction.run(*getter(slots))
            else:
                instruction.run(*getter(slots), out=slots[instruction.slot])
            for slot in instruction.frees:
                slots[slot] = None
        result = slots[self.program.output_slot]
        assert isinstance(result, Tensor)
        return result

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
        if self.arena.trim():
            self.bound.clear()

    def close(self) -> None:
        self.bound.clear()
        self.arena.release()


Step = tuple[Instruction, Callable[[list[object]], Sequence[object]]]
"""An instruction, and what fetches its arguments."""


def split_steps(program: Program) -> tuple[list[Step], list[Step]]:
    """What has to run each time, and the views of planned tensors, which are the same for every batch of a shape."""
    fixed = {tensor.slot for tensor in program.tensors}
    fixed |= {index for index, value in enumerate(program.slots) if value is not None}
    steps: list[Step] = []
    views: list[Step] = []
    for instruction in program.instructions:
        is_fixed = instruction.kind == "view" and all(slot in fixed for slot in instruction.args)
        if is_fixed:
            fixed.add(instruction.slot)
        (views if is_fixed else steps).append((instruction, make_getter(instruction.args)))
    return steps, views


def make_getter(args: tuple[int, ...]) -> Callable[[list[object]], Sequence[object]]:
    """Fetches argument slots in one call; a slice for one of them, because itemgetter would return it bare."""
    if not args:
        return lambda slots: ()
    return itemgetter(*args) if len(args) > 1 else itemgetter(slice(args[0], args[0] + 1))


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
