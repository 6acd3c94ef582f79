"""How long a step will take: a + b * sum(len) + c * sum(len^2), fitted at warm-up and corrected by every step since.

Linear layers cost by the token, attention by the square of each sequence; packing adds nothing else. Pure.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CORRECTION_WEIGHT = 0.1
"""Of the newest step in the running correction."""
CORRECTION_LIMIT = 8.0
"""The correction stays within this factor: one stalled step must not spoil the next predictions."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step consists of, as far as its time depends on it."""

    num_tokens: int
    sum_squares: int


@dataclass(slots=True)
class CostModel:
    """Seconds: `fixed_s` per step, `per_token_s` per token, `per_square_s` per squared length.

    Mutable: `correction`, the running ratio of actual to predicted time, and `mean_seqlen`.
    """

    fixed_s: float = 0.0
    per_token_s: float = 0.0
    per_square_s: float = 0.0
    correction: float = 1.0
    mean_seqlen: float = 64.0

    def predict(self, cost: StepCost) -> float:
        """Seconds; 0 where nothing was measured yet."""
        raw = self.fixed_s + self.per_token_s * cost.num_tokens + self.per_square_s * cost.sum_squares
        return raw * self.correction

    def observe(self, cost: StepCost, num_seqs: int, actual_s: float) -> None:
        """Learn from a measured step: a little, in the logarithm, so that too long and too short weigh the same."""
        if actual_s <= 0:
            return
        predicted_s = self.predict(cost)
        if predicted_s <= 0:  # nothing was timed at start-up: the first step is the first guess
            self.per_token_s = actual_s / cost.num_tokens
            return
        error = math.log(actual_s / predicted_s)
        limit = math.log(CORRECTION_LIMIT)
        log_correction = math.log(self.correction) + CORRECTION_WEIGHT * max(-limit, min(limit, error))
        self.correction = math.exp(max(-limit, min(limit, log_correction)))
        self.mean_seqlen += CORRECTION_WEIGHT * (cost.num_tokens / num_seqs - self.mean_seqlen)

    def tokens_per_s(self, max_batch_tokens: int) -> float:
        """The rate of full batches of sequences as long as those seen lately; 0 where nothing was measured yet."""
        full_s = self.predict(StepCost(max_batch_tokens, int(max_batch_tokens * self.mean_seqlen)))
        return max_batch_tokens / full_s if full_s > 0 else 0.0


RATE_MEMORY_S = 10.0


@dataclass(slots=True)
class Rate:
    """Tokens per second of the device's time, over the last RATE_MEMORY_S of it. Mutable."""

    num_tokens: float = 0.0
    seconds: float = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        kept = math.exp(-seconds / RATE_MEMORY_S)
        self.num_tokens = self.num_tokens * kept + num_tokens
        self.seconds = self.seconds * kept + seconds

    @property
    def tokens_per_s(self) -> float:
        """0 where nothing was measured yet."""
        return self.num_tokens / self.seconds if self.seconds > 0 else 0.0


def cost_of_lengths(seqlens: Sequence[int] | npt.NDArray[np.int32]) -> StepCost:
    """Of sequences that are computed whole."""
    lengths = np.asarray(seqlens, np.int64)
    return StepCost(int(lengths.sum()), int(np.square(lengths).sum()))


def fit_cost_model(samples: list[tuple[StepCost, float]]) -> CostModel:
    """Least squares of the relative error without negative coefficients: the best subset of terms that has none."""
    if not samples:
        return CostModel()
    seconds = np.array([actual_s for _, actual_s in samples])
    terms = np.array([[1.0, cost.num_tokens, cost.sum_squares] for cost, _ in samples]) / seconds[:, None]
    best: tuple[float, npt.NDArray[np.float64]] = (math.inf, np.zeros(3))
    for size in (1, 2, 3):
        for subset in itertools.combinations(range(3), size):
            found = np.linalg.lstsq(terms[:, subset], np.ones(len(seconds)), rcond=None)[0]
            coefficients = np.zeros(3)
            coefficients[list(subset)] = found
            error = float(np.square(terms @ coefficients - 1).sum())
            if found.min() >= 0 and error < best[0]:
                best = (error, coefficients)
    return CostModel(*(float(coefficient) for coefficient in best[1]))
