"""Owns the chunks and remembers the plans. Memory persists between steps; a step that has a plan allocates nothing.

Differs from TurboTransformers' allocator where that is weak: plans are cached per bucket of shapes instead of made for
each step, a larger bucket's plan serves a smaller batch before anything is allocated, a byte cap holds, and memory is
given back only after many steps without need of it, by `trim`, which the engine calls when it is idle.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from runtime.memory.lifetimes import BatchShape, Lifetime
from runtime.memory.planner import MemoryPlan, Placement, plan_chunks, plan_region

Buffer = TypeVar("Buffer")
COMPACT_ABOVE = 1.25
"""Chunks that have grown piecemeal to this factor over one well-planned region are replaced by one."""


class CapExceeded(ValueError):
    """A batch of this shape cannot run under the byte cap."""


@dataclass(frozen=True, slots=True)
class Layout(Generic[Buffer]):
    """Where each tensor lies: (buffer, offset in bytes)."""

    places: tuple[tuple[Buffer, int], ...]
    used_bytes: int


@dataclass(slots=True)
class Arena(Generic[Buffer]):
    """Mutable: everything but `allocate`, `cap_bytes`, `on_release` and `release_after`. Belongs to one thread.

    `allocate(num_bytes)` gets memory from the system; it goes back when the last reference to the buffer is dropped.
    """

    allocate: Callable[[int], Buffer]
    cap_bytes: int | None = None
    on_release: Callable[[], None] = lambda: None
    """Called before chunks are given up: whoever holds views of them has to drop them first."""
    release_after: int = 2048
    """Steps over which the largest need is remembered before `trim` may shrink to it."""
    chunks: list[tuple[int, Buffer]] = field(default_factory=list)
    layouts: dict[BatchShape, Layout[Buffer]] = field(default_factory=dict)
    num_allocations: int = 0
    allocated_bytes: int = 0
    """In all, ever."""
    in_use_bytes: int = 0
    """By the latest step."""
    num_hits: int = 0
    num_misses: int = 0
    window_steps: int = 0
    window_peak_bytes: int = 0

    @property
    def reserved_bytes(self) -> int:
        return sum(size for size, _ in self.chunks)

    def layout(self, bucket: BatchShape, size: Callable[[], list[Lifetime]]) -> Layout[Buffer]:
        """The places for a batch of this bucket; `size` is called only where no plan is known. Raises CapExceeded."""
        layout = self.layouts.get(bucket)
        if layout is None:
            self.num_misses += 1
            layout = self.layouts[bucket] = self.plan(bucket, size())
        else:
            self.num_hits += 1
        self.in_use_bytes = layout.used_bytes
        self.window_steps += 1
        self.window_peak_bytes = max(self.window_peak_bytes, layout.used_bytes)
        return layout

    def plan(self, bucket: BatchShape, lifetimes: list[Lifetime]) -> Layout[Buffer]:
        plan = plan_chunks(lifetimes, [size for size, _ in self.chunks])
        if plan.new_chunk_bytes:
            for known, layout in self.layouts.items():
                if known.dominates(bucket):
                    return layout
            plan = self.grow(plan, lifetimes)
        buffers = [buffer for _, buffer in self.chunks]
        places = tuple((buffers[place.chunk], place.offset) for place in plan.placements)
        return Layout(places, measure_use(plan, lifetimes))

    def grow(self, plan: MemoryPlan, lifetimes: list[Lifetime]) -> MemoryPlan:
        """Allocate the plan's new chunk, or replace all chunks by one where piecemeal growth would waste too much.

        The largest chunk never gets smaller, so batches that take turns do not chase one another's chunks away.
        """
        offsets, peak = plan_region(lifetimes)
        for index, (size, _) in enumerate(self.chunks):
            if peak <= size:  # the search over one region finds room that filling chunk by chunk has missed
                return MemoryPlan(tuple(Placement(index, offset) for offset in offsets), 0)
        if self.cap_bytes is not None and peak > self.cap_bytes:
            raise CapExceeded(f"this batch needs {peak} bytes of activations, over the cap of {self.cap_bytes}")
        grown = self.reserved_bytes + plan.new_chunk_bytes
        if grown <= peak * COMPACT_ABOVE and (self.cap_bytes is None or grown <= self.cap_bytes):
            self.add_chunk(plan.new_chunk_bytes)
            return plan
        self.release()
        self.add_chunk(peak)
        return MemoryPlan(tuple(Placement(0, offset) for offset in offsets), peak)

    def add_chunk(self, num_bytes: int) -> None:
        self.chunks.append((num_bytes, self.allocate(num_bytes)))
        self.num_allocations += 1
        self.allocated_bytes += num_bytes

    def trim(self) -> bool:
        """Give memory back if over a whole window of steps less than half of it was needed. For idle moments."""
        if self.window_steps < self.release_after:
            return False
        is_wasteful = self.reserved_bytes > 2 * self.window_peak_bytes
        if is_wasteful:
            self.release()
        self.window_steps = self.window_peak_bytes = 0
        return is_wasteful

    def release(self) -> None:
        self.on_release()
        self.chunks.clear()
        self.layouts.clear()


def measure_use(plan: MemoryPlan, lifetimes: list[Lifetime]) -> int:
    """Bytes of all chunks up to the highest one in use."""
    highest: dict[int, int] = {}
    for place, life in zip(plan.placements, lifetimes, strict=True):
        highest[place.chunk] = max(highest.get(place.chunk, 0), place.offset + life.num_bytes)
    return sum(highest.values())
