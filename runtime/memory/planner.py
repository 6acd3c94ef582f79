"""From lifetimes to offsets: where in a few chunks of memory each tensor of a step lies.

The chunked placement follows TurboTransformers (Fang et al., PPoPP 2021, algorithm 1): large tensors first, each into
the best-fitting gap of the smallest chunk that has one, tensors that never live together sharing space. Two things
differ. What fits in no chunk is planned together into one new chunk of exactly the size it needs, where the original
opened a chunk 1.2 times as large for each such tensor. And several orders are tried, the best plan kept, because
"largest first" alone can miss the optimum by a third.

Pure functions of integers: no memory is touched here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtime.memory.lifetimes import Lifetime, live_peak

GOOD_ENOUGH = 1.02
"""A plan within this factor of the lower bound ends the search."""
NUM_REPAIRS = 48
"""Attempts to improve an order by moving the tensor that sticks out to its front."""


@dataclass(frozen=True, slots=True)
class Placement:
    chunk: int
    offset: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """`placements[i]` is where tensor i lies. Chunks are numbered as given to the planner; a new one comes last."""

    placements: tuple[Placement, ...]
    new_chunk_bytes: int
    """Size of the chunk to allocate, numbered after those given; 0 if all fits."""


@dataclass(slots=True)
class Region:
    """Tensors placed in one address range. Mutable: `placed`, (offset, lifetime) sorted by offset."""

    capacity: int | None
    placed: list[tuple[int, Lifetime]]

    def find_offset(self, life: Lifetime) -> int | None:
        """The start of the smallest gap that holds `life` while it lives, else the first free byte after all."""
        end_of_last = 0
        best: int | None = None
        best_gap = 0
        for offset, other in self.placed:
            if not life.overlaps(other):
                continue
            gap = offset - end_of_last
            if gap >= life.num_bytes and (best is None or gap < best_gap):
                best, best_gap = end_of_last, gap
            end_of_last = max(end_of_last, offset + other.num_bytes)
        if best is not None:
            return best
        fits = self.capacity is None or end_of_last + life.num_bytes <= self.capacity
        return end_of_last if fits else None

    def place(self, offset: int, life: Lifetime) -> None:
        index = len(self.placed)
        while index and self.placed[index - 1][0] > offset:
            index -= 1
        self.placed.insert(index, (offset, life))


def plan_chunks(lifetimes: Sequence[Lifetime], chunk_sizes: Sequence[int] = ()) -> MemoryPlan:
    """Place every tensor in the given chunks, and what does not fit in one new chunk. Smaller chunks fill first."""
    regions = [Region(size, []) for size in chunk_sizes]
    ascending = sorted(range(len(regions)), key=lambda index: chunk_sizes[index])
    placements: dict[int, Placement] = {}
    left_over: list[int] = []
    for tensor in sorted(range(len(lifetimes)), key=lambda t: -lifetimes[t].num_bytes):
        placement = place_first(lifetimes[tensor], regions, ascending)
        if placement is None:
            left_over.append(tensor)
        else:
            placements[tensor] = placement
    offsets, new_chunk_bytes = plan_region([lifetimes[tensor] for tensor in left_over])
    for tensor, offset in zip(left_over, offsets, strict=True):
        placements[tensor] = Placement(len(chunk_sizes), offset)
    return MemoryPlan(tuple(placements[tensor] for tensor in range(len(lifetimes))), new_chunk_bytes)


def place_first(life: Lifetime, regions: Sequence[Region], order: Sequence[int]) -> Placement | None:
    for chunk in order:
        offset = regions[chunk].find_offset(life)
        if offset is not None:
            regions[chunk].place(offset, life)
            return Placement(chunk, offset)
    return None


def plan_region(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Offsets in one range of addresses, and its length: the best of several greedy orders, repaired if need be."""
    good_enough = live_peak(lifetimes) * GOOD_ENOUGH
    tried: list[tuple[int, list[int], list[int]]] = []
    for key in ORDERS:
        order = sorted(range(len(lifetimes)), key=lambda tensor: key(lifetimes[tensor]))
        offsets, peak = fill_region(lifetimes, order)
        if peak <= good_enough:
            return offsets, peak
        tried.append((peak, order, offsets))
    best_peak, _, best = min(tried)
    for _, order, offsets in sorted(tried):
        offsets, peak = repair_order(lifetimes, order, offsets, good_enough)
        if peak < best_peak:
            best, best_peak = offsets, peak
        if best_peak <= good_enough:
            break
    return best, best_peak


ORDERS: tuple[Callable[[Lifetime], tuple[int, ...]], ...] = (
    lambda life: (-life.num_bytes, life.start),
    lambda life: (-life.num_bytes * (life.end - life.start + 1), life.start),
    lambda life: (life.start - life.end, -life.num_bytes),
    lambda life: (life.start, -life.num_bytes),
    lambda life: (-life.end, -life.num_bytes),
)


def fill_region(lifetimes: Sequence[Lifetime], order: Sequence[int]) -> tuple[list[int], int]:
    """Place in `order`, each into its best gap. Returns offsets by tensor, and the first byte after all."""
    region = Region(None, [])
    offsets = [0] * len(lifetimes)
    peak = 0
    for tensor in order:
        life = lifetimes[tensor]
        offset = region.find_offset(life)
        assert offset is not None, "An unbounded region always has room. This is a bug."
        region.place(offset, life)
        offsets[tensor] = offset
        peak = max(peak, offset + life.num_bytes)
    return offsets, peak


def repair_order(
    lifetimes: Sequence[Lifetime], order: list[int], offsets: list[int], good_enough: float
) -> tuple[list[int], int]:
    """Move the tensor that reaches highest to the front and place again, while that has not been tried before."""
    seen = {tuple(order)}
    best, best_peak = offsets, max(offset + life.num_bytes for offset, life in zip(offsets, lifetimes, strict=True))
    for _ in range(NUM_REPAIRS):
        if best_peak <= good_enough:
            break
        highest = max(order, key=lambda tensor: (offsets[tensor] + lifetimes[tensor].num_bytes, -order.index(tensor)))
        order = [highest, *(tensor for tensor in order if tensor != highest)]
        if tuple(order) in seen:
            break
        seen.add(tuple(order))
        offsets, peak = fill_region(lifetimes, order)
        if peak < best_peak:
            best, best_peak = offsets, peak
    return best, best_peak
