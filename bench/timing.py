"""How to compare on a noisy machine: in turn, in one run, and by the median of ratios with its spread."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tqdm import tqdm


@dataclass(frozen=True)
class Comparison:
    """Seconds per candidate, one entry per round; all candidates of a round ran right after one another."""

    seconds: dict[str, list[float]]

    def median_s(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, slower: str, faster: str) -> tuple[float, float, float]:
        """How many times as long `slower` took: median over the rounds, and the 10th and 90th percentile."""
        ratios = sorted(a / b for a, b in zip(self.seconds[slower], self.seconds[faster], strict=True))
        last = len(ratios) - 1
        return statistics.median(ratios), ratios[round(last * 0.1)], ratios[round(last * 0.9)]


def compare(candidates: Mapping[str, Callable[[], object]], *, rounds: int, title: str) -> Comparison:
    """Warm each up once, then run A B C A B C ..."""
    for run in candidates.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in tqdm(range(rounds), desc=title, leave=False):
        for name, run in candidates.items():
            started_s = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started_s)
    return Comparison(seconds)


def format_ratio(ratio: tuple[float, float, float]) -> str:
    return f"{ratio[0]:.2f} ({ratio[1]:.2f}-{ratio[2]:.2f})"
