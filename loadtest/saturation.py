"""Tells that a step is past saturation, so that it can stop before its queue does harm. Pure: is told the time."""

import itertools
import math
from dataclasses import dataclass, field

NUM_RISES = 6  # by chance alone the floors of six windows rise in a row about once in 700 times
MIN_IN_FLIGHT = 32
SLO_MULTIPLE = 4


def max_in_flight(rate: float, slo_s: float, max_connections: int) -> int:
    """The most requests in flight that can still pass.

    By Little's law a server that keeps the SLO holds at most rate * SLO of them on average; a few times that is lost.
    """
    return min(max(64, math.ceil(SLO_MULTIPLE * rate * slo_s)), max_connections)


@dataclass
class Backlog:
    """Watches the number of requests in flight. Mutable: the current window's floor, and those of the windows before.

    A healthy server's number falls back again and again, so the lowest value of a window (its floor) stays where it is;
    above capacity the floors rise without end. A window must be longer than the SLO, or the start would look so too.
    """

    limit: int
    window_s: float
    peak: int = 0
    _floor: int | None = None
    _window: int = 0
    _floors: list[int] = field(default_factory=list)

    def observe(self, now_s: float, in_flight: int) -> bool:
        """Notes the number in flight, `now_s` after the start; true once the step is saturated."""
        self.peak = max(self.peak, in_flight)
        window = int(now_s / self.window_s)
        if self._floor is None or window == self._window:
            self._floor = in_flight if self._floor is None else min(self._floor, in_flight)
        else:
            self._floors.append(self._floor)
            self._floor = in_flight
        self._window = window
        return in_flight >= self.limit or is_growing(self._floors)


def is_growing(floors: list[int]) -> bool:
    """Whether the last floors only ever rose, to a number that is no accident."""
    last = floors[-NUM_RISES - 1 :]
    is_long = len(last) > NUM_RISES and last[-1] >= MIN_IN_FLIGHT
    return is_long and all(before < after for before, after in itertools.pairwise(last))
