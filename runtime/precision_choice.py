"""What was chosen for a model whose precision is left to measurement, and the measurements that the choice rests on.

Made once per model by `runtime.precision_trial`, before any engine is built to serve; engines are told, and all
replicas alike. A plain record: it crosses processes, lies on disk, and is shown at `/info`.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.config import AccuracyLevel, Precision
from runtime.quantization.accuracy import ON_OWN_TEXTS, ON_SAMPLES, Accuracy

MIN_GAIN = 1.03
"""A less exact precision has to be faster by this factor."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One precision against FP32: `gains`, FP32's time by its own for each size that was timed, and its accuracy."""

    precision: Precision
    gains: tuple[float, ...]
    accuracy: Accuracy
    judged_on: str
    """The texts, in words."""
    is_calibrated: bool = False
    """They are its user's own, those of `padless quantize`."""

    @property
    def gain(self) -> float:
        """Over all sizes, from a lone short text to the largest batch: their geometric mean, in which each counts the
        same. That of the times would be the largest batch's alone."""
        return statistics.geometric_mean(self.gains)

    def is_admitted(self, level: AccuracyLevel) -> bool:
        levels = ON_OWN_TEXTS if self.is_calibrated else ON_SAMPLES
        return levels[level][self.accuracy.agrees_on].holds(self.accuracy)


@dataclass(frozen=True, slots=True)
class ChosenPrecision:
    """`by_tokens`: (largest num_tokens, precision), ascending; the last entry holds for all that is larger.

    One entry means one precision for batches of every size. `candidates`: the most exact first; none where nothing was
    measured, for the reason that `problem` gives.
    """

    by_tokens: tuple[tuple[int, Precision], ...]
    level: AccuracyLevel
    sizes: tuple[int, ...] = ()
    """num_tokens of the batches that were timed."""
    candidates: tuple[Candidate, ...] = ()
    kernels: str = ""
    """The instruction set of the compiled kernels that they ran on, or torch."""
    problem: str = ""

    def find(self, num_tokens: int) -> Precision:
        for limit, precision in self.by_tokens:
            if num_tokens <= limit:
                return precision
        return self.by_tokens[-1][1]

    @property
    def used(self) -> tuple[Precision, ...]:
        return tuple(dict.fromkeys(precision for _, precision in self.by_tokens))

    def __str__(self) -> str:
        """What is used, what was given up for what gain, and what was left out and why."""
        if self.problem:
            return f"{self.used[0]}, the exact one, because {self.problem}"
        exact, *others = self.candidates
        taken = [f"{exact.precision}, exact"] * (exact.precision in self.used)
        taken += [self.describe_taken(each) for each in others if each.precision in self.used]
        left = [self.describe_left(each) for each in others if each.precision not in self.used]
        table = [", ".join(f"{name} up to {limit} tokens" for limit, name in self.by_tokens)] * (len(self.used) > 1)
        return "; ".join([*table, *taken, *left])

    def describe_taken(self, candidate: Candidate) -> str:
        return (
            f"{candidate.precision}, {candidate.gain:.2f} times as fast as {self.candidates[0].precision} over batches "
            f"of {self.sizes[0]} to {self.sizes[-1]} tokens, for {candidate.accuracy} ({candidate.judged_on})"
        )

    def describe_left(self, candidate: Candidate) -> str:
        name, gain, accuracy = candidate.precision, candidate.gain, candidate.accuracy
        if candidate.is_admitted(self.level):
            return f"left out: {name}, {gain:.2f} times as fast"
        level = next((level for level in ON_SAMPLES if candidate.is_admitted(level)), None)
        remedy = f"accuracy {level} takes it" if level else "no accuracy takes it"
        what = f"{gain:.2f} times as fast but not {self.level}: {accuracy} ({candidate.judged_on})"
        return f"left out: {name}, {what}; {remedy}"


def choose_one(
    candidates: Sequence[Candidate], level: AccuracyLevel, largest: int
) -> tuple[tuple[int, Precision], ...]:
    """`auto`: the precision that gains most over all sizes, for all of them. Of candidates ordered from the most exact,
    a later one only where it gains enough."""
    return ((largest, choose_fastest([(each, each.gain) for each in candidates], level)),)


def choose_per_bucket(
    candidates: Sequence[Candidate], level: AccuracyLevel, sizes: Sequence[int]
) -> tuple[tuple[int, Precision], ...]:
    """`auto_per_bucket`: for each size the precision that gains most there; neighbours that agree are one entry."""
    table: list[tuple[int, Precision]] = []
    for index, size in enumerate(sizes):
        best = choose_fastest([(each, each.gains[index]) for each in candidates], level)
        if table and table[-1][1] == best:
            table.pop()
        table.append((size, best))
    return tuple(table)


def choose_fastest(gains: Sequence[tuple[Candidate, float]], level: AccuracyLevel) -> Precision:
    """The first is the exact one, which is always good enough."""
    best, best_gain = gains[0]
    for candidate, gain in gains[1:]:
        if candidate.is_admitted(level) and gain > best_gain * MIN_GAIN:
            best, best_gain = candidate, gain
    return best.precision
