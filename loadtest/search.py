"""Chooses the next rate of a sweep: bracket the capacity, then bisect it. Pure; measuring is left to `open_loop`."""

from collections.abc import Sequence
from typing import NamedTuple


class Trial(NamedTuple):
    """One rate that was tried, and whether the server kept the SLO at it."""

    rate: float
    has_passed: bool


def best_rate(trials: Sequence[Trial]) -> float | None:
    """The highest rate that passed below every rate that failed: above a failure, a pass is taken for luck."""
    ceiling = min((trial.rate for trial in trials if not trial.has_passed), default=float("inf"))
    return max((trial.rate for trial in trials if trial.has_passed and trial.rate < ceiling), default=None)


def next_rate(trials: Sequence[Trial], start: float, precision: float) -> float | None:
    """The rate to try next; None when the capacity is known to within the share `precision` of itself."""
    if not trials:
        return start
    low = best_rate(trials)
    failed = [trial.rate for trial in trials if not trial.has_passed]
    if not failed:
        return max(trial.rate for trial in trials) * 2
    high = min(failed)
    if low is None:
        return high / 2
    return None if high - low <= precision * low else (low + high) / 2
