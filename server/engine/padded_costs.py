"""How long a step takes whose sequences are padded to the longest: measured by shape, corrected by every step since.

No formula holds for what other people's kernels do with a shape, so seconds are kept by it, and in between read off
linearly in both numbers, which is exact wherever a step is a + b * num_seqs * longest. Pure.
"""

import math
from dataclasses import dataclass, field, replace
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from server.engine.cost_model import CORRECTION_LIMIT, CORRECTION_WEIGHT

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

LOCAL_LIMIT = 2.0
"""What single shapes were found to take stays within this factor of the others."""
GUESSED_TOKENS = 64
"""What a step takes besides its tokens where nothing was measured, as so many tokens more."""


class StoredTable(TypedDict):
    """A CostTable as JSON."""

    num_seqs: list[int]
    seqlens: list[int]
    seconds: list[list[float]]


@dataclass(frozen=True, slots=True, eq=False)
class CostTable:
    """`seconds[i, j]`: of a step of `num_seqs[i]` sequences of `seqlens[j]` tokens, both ascending.

    Linear in both in between; beyond the last of either it goes on as it went before.
    """

    num_seqs: IntArray
    seqlens: IntArray
    seconds: FloatArray

    def read(self, num_seqs: IntArray, seqlens: IntArray) -> FloatArray:
        """Seconds `[b, a]` for numbers of sequences `[a]` and lengths `[b]`."""
        found: FloatArray = weigh(self.seqlens, seqlens) @ self.seconds.T @ weigh(self.num_seqs, num_seqs).T
        return found

    def find(self, num_seqs: int, longest: int) -> float:
        return float(self.read(np.array([num_seqs]), np.array([longest]))[0, 0])

    def put(self, measured: dict[tuple[int, int], float]) -> "CostTable":
        """With these seconds by (num_seqs, longest), for which lines are added; elsewhere on them nothing changes."""
        num_seqs = np.union1d(self.num_seqs, np.array([shape[0] for shape in measured]))
        seqlens = np.union1d(self.seqlens, np.array([shape[1] for shape in measured]))
        seconds = self.read(num_seqs, seqlens).T.copy()
        for shape, shape_s in measured.items():
            seconds[np.searchsorted(num_seqs, shape[0]), np.searchsorted(seqlens, shape[1])] = shape_s
        return CostTable(num_seqs, seqlens, seconds)

    def rise(self) -> "CostTable":
        """Where a larger step was measured to be faster it takes as long as the smaller one: running maxima."""
        return replace(self, seconds=np.maximum.accumulate(np.maximum.accumulate(self.seconds, 0), 1))

    def dump(self) -> StoredTable:
        return {
            "num_seqs": self.num_seqs.tolist(),
            "seqlens": self.seqlens.tolist(),
            "seconds": self.seconds.tolist(),
        }


def load_table(stored: StoredTable) -> CostTable:
    return CostTable(np.array(stored["num_seqs"]), np.array(stored["seqlens"]), np.array(stored["seconds"]))


def weigh(grid: IntArray, wanted: IntArray) -> FloatArray:
    """How much of each line of the grid is in each of these numbers: `[len(wanted), len(grid)]`, rows add up to 1."""
    weights = np.zeros((len(wanted), len(grid)))
    if len(grid) == 1:
        weights[:] = 1.0
        return weights
    below = np.clip(np.searchsorted(grid, wanted, side="right") - 1, 0, len(grid) - 2)
    part = (wanted - grid[below]) / (grid[below + 1] - grid[below])
    rows = np.arange(len(wanted))
    weights[rows, below], weights[rows, below + 1] = 1.0 - part, part
    return weights


GUESSED_LINES = np.array([1, 8, 64, 512, 4096])
GUESS = CostTable(GUESSED_LINES, GUESSED_LINES, GUESSED_TOKENS + np.outer(GUESSED_LINES, GUESSED_LINES).astype(float))
"""Where nothing was measured: GUESSED_TOKENS + num_seqs * longest, in a unit that is unknown."""


@dataclass(slots=True, eq=False)
class PaddedCosts:
    """A table and what was learned since.

    Mutable, and in the logarithm: `drift`, the running ratio of actual to predicted time of all steps, as the machine
    may have become slower; `local`, the same by lines of the table, for shapes that were measured wrong. And the
    running means of `seqlen` and `longest`. `is_measured`: false until anything was timed.
    """

    table: CostTable = GUESS
    is_measured: bool = False
    drift: float = 0.0
    local: FloatArray = field(init=False)
    mean_seqlen: float = 64.0
    mean_longest: float = 64.0

    def __post_init__(self) -> None:
        self.local = np.zeros_like(self.table.seconds)

    def read(self, num_seqs: IntArray, seqlens: IntArray) -> FloatArray:
        """As `CostTable.read`, corrected. Without measurements they tell shapes apart, but are no seconds."""
        corrected = self.table.seconds * np.exp(self.drift + self.local)
        found = replace(self.table, seconds=corrected).read(num_seqs, seqlens)
        # Lines that were corrected apart may fall beyond the last of them: nothing takes less than the least.
        floored: FloatArray = np.maximum(found, corrected.min())
        return floored

    def predict(self, num_seqs: int, longest: int) -> float:
        """Seconds; 0 where nothing was measured yet."""
        return float(self.read(np.array([num_seqs]), np.array([longest]))[0, 0]) if self.is_measured else 0.0

    def observe(self, num_seqs: int, longest: int, num_tokens: int, actual_s: float) -> None:
        """Learn from a measured step, of which `num_tokens` are no padding: a little, as `CostModel` does."""
        if actual_s <= 0:
            return
        self.mean_seqlen += CORRECTION_WEIGHT * (num_tokens / num_seqs - self.mean_seqlen)
        self.mean_longest += CORRECTION_WEIGHT * (longest - self.mean_longest)
        if not self.is_measured:  # nothing was timed at start-up: the first step is the first guess
            self.table = replace(GUESS, seconds=GUESS.seconds * (actual_s / GUESS.find(num_seqs, longest)))
            self.is_measured = True
            return
        limit, local_limit = math.log(CORRECTION_LIMIT), math.log(LOCAL_LIMIT)
        error = math.log(actual_s / self.predict(num_seqs, longest))
        change = CORRECTION_WEIGHT * max(-limit, min(limit, error))
        self.drift = max(-limit, min(limit, self.drift + change))
        rows = weigh(self.table.num_seqs, np.array([num_seqs]))
        nearest = np.clip(rows.T @ weigh(self.table.seqlens, np.array([longest])), 0.0, 1.0)
        self.local = np.clip(self.local + change * nearest, -local_limit, local_limit)

    def tokens_per_s(self, max_batch_tokens: int, max_batch_requests: int) -> float:
        """Without padding: the rate of full batches of sequences as long as those seen lately; 0 where nothing was
        measured yet."""
        num_seqs = max(1, min(max_batch_requests, int(max_batch_tokens / self.mean_longest)))
        full_s = self.predict(num_seqs, round(self.mean_longest))
        return num_seqs * self.mean_seqlen / full_s if full_s > 0 else 0.0
