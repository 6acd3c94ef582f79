"""Times an engine that pads on a grid of shapes at start-up, finer where what lies between is not what it seems."""

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from math import isqrt
from time import monotonic

import numpy as np

from runtime.engine import Engine, Progress
from server.engine.batchers.packing import pack_sequences
from server.engine.calibration import REPEATS, time_run
from server.engine.padded_costs import CostTable, PaddedCosts
from server.wire.job import TokenSequence

BUDGET_S = 2.0
"""No shape is timed that would not be done by then; the first steps of traffic tell the rest."""
GRID_RATIO = 4
"""Of each line of the first grid to the one before."""
TOLERANCE = 0.15
"""A cell whose middle takes longer, or less long, than it seems by more than this is divided in four."""

Shape = tuple[int, int]
"""(num_seqs, seqlen)"""


@dataclass(frozen=True, slots=True)
class Cell:
    """What lies between two numbers of sequences and two lengths."""

    num_seqs: Shape
    seqlens: Shape

    @property
    def middle(self) -> Shape:
        """The geometric one: seconds grow by ratios."""
        return isqrt(self.num_seqs[0] * self.num_seqs[1]), isqrt(self.seqlens[0] * self.seqlens[1])

    @property
    def is_smallest(self) -> bool:
        return self.middle == (self.num_seqs[0], self.seqlens[0])

    def list_middles(self) -> list[Shape]:
        """Its own and those of its sides."""
        num_seqs, seqlen = self.middle
        sides = [(each, seqlen) for each in self.num_seqs] + [(num_seqs, each) for each in self.seqlens]
        return [self.middle, *sides]

    def divide(self) -> list["Cell"]:
        num_seqs, seqlen = self.middle
        rows = {(self.num_seqs[0], num_seqs), (num_seqs, self.num_seqs[1])}
        columns = {(self.seqlens[0], seqlen), (seqlen, self.seqlens[1])}
        return [Cell(row, column) for row in sorted(rows) for column in sorted(columns)]


@dataclass(slots=True)
class Stopwatch:
    """Mutable: the seconds of each shape that was timed."""

    engine: Engine
    max_batch_tokens: int
    until_s: float
    seconds: dict[Shape, float] = field(default_factory=dict)

    def time(self, shape: Shape) -> float | None:
        """Seconds; None where it is too large, or would take longer than there is time. The first is timed anyway."""
        num_tokens = shape[0] * shape[1]
        if shape in self.seconds:
            return self.seconds[shape]
        if num_tokens > self.max_batch_tokens or (self.seconds and not self.has_time(num_tokens)):
            return None
        batch = pack_sequences([TokenSequence(np.zeros(shape[1], np.int32))] * shape[0])
        self.seconds[shape] = min(time_run(self.engine, batch))
        return self.seconds[shape]

    def has_time(self, num_tokens: int) -> bool:
        """By the largest step so far."""
        largest = max(self.seconds, key=lambda shape: shape[0] * shape[1])
        ratio = max(1.0, num_tokens / (largest[0] * largest[1]))
        return monotonic() + REPEATS * ratio * self.seconds[largest] <= self.until_s


def calibrate_padded(
    engine: Engine, *, max_batch_tokens: int, max_batch_requests: int, max_input_tokens: int, progress: Progress
) -> PaddedCosts:
    """Time a coarse grid, the smallest shapes first, and then what it has missed."""
    watch = Stopwatch(engine, max_batch_tokens, monotonic() + BUDGET_S)
    num_seqs = list_lines(min(max_batch_requests, max_batch_tokens))
    seqlens = list_lines(min(max_input_tokens, max_batch_tokens))
    shapes = sorted(((n, s) for n in num_seqs for s in seqlens), key=lambda shape: (shape[0] * shape[1], shape))
    for index, shape in enumerate(shapes):
        progress("timing", index, len(shapes))
        watch.time(shape)
    table = refine(extend(num_seqs, seqlens, watch.seconds), watch, progress)
    progress("timing", len(shapes), len(shapes))
    return PaddedCosts(table.rise(), is_measured=True)


def list_lines(largest: int) -> list[int]:
    """Of the first grid, from 1."""
    lines = [1]
    while lines[-1] < largest:
        lines.append(min(largest, lines[-1] * GRID_RATIO))
    return lines


def extend(num_seqs: list[int], seqlens: list[int], measured: dict[Shape, float]) -> CostTable:
    """What was not measured takes as much longer than its smaller neighbours as it has more tokens. The first was."""
    seconds = np.zeros((len(num_seqs), len(seqlens)))
    for i, j in np.ndindex(*seconds.shape):
        shape = (num_seqs[i], seqlens[j])
        shorter = seconds[i, j - 1] * (seqlens[j] / seqlens[j - 1]) if j else 0.0
        fewer = seconds[i - 1, j] * (num_seqs[i] / num_seqs[i - 1]) if i else 0.0
        seconds[i, j] = measured.get(shape) or max(shorter, fewer)
    return CostTable(np.array(num_seqs), np.array(seqlens), seconds)


def refine(table: CostTable, watch: Stopwatch, progress: Progress) -> CostTable:
    """Divide cells, and the cells they are divided into, as long as there is time."""
    cells = deque(list_cells(table))
    num_done = 0
    while cells:
        progress("timing between", num_done, num_done + len(cells))
        cell = cells.popleft()
        num_done += 1
        middle_s = None if cell.is_smallest else watch.time(cell.middle)
        if middle_s is None or abs(middle_s / table.find(*cell.middle) - 1) <= TOLERANCE:
            continue
        found = {shape: watch.time(shape) for shape in cell.list_middles()}
        table = table.put({shape: shape_s for shape, shape_s in found.items() if shape_s is not None})
        cells += cell.divide()
    return table


def list_cells(table: CostTable) -> list[Cell]:
    """Those of the fewest tokens first. Where there is but one line, cells are as narrow as that."""
    rows, columns = (list_gaps(lines.tolist()) for lines in (table.num_seqs, table.seqlens))
    cells = [Cell(row, column) for row in rows for column in columns]
    return sorted(cells, key=lambda cell: cell.middle[0] * cell.middle[1])


def list_gaps(lines: list[int]) -> list[Shape]:
    return [(lines[0], lines[0])] if len(lines) == 1 else list(pairwise(lines))
