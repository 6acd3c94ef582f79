"""Loaded workers on one list of tasks: the best batch size of each, then rounds in turn, then whose answers differ."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from bench.generation.catalogue import REFERENCE, list_batch_sizes
from bench.generation.session import load_lists
from bench.peers.measuring import SLOW_SHARE, CellRun, Measurement, find_batch_size


@dataclass
class GenerationMeasurement(Measurement):
    """`num_tokens` are those of the answers that were asked for; whatever else is generated does not count."""

    agreement: float | None = None
    """Share of the answers' tokens that come before the first difference from the reference's; None without one."""


class GenerationRun(CellRun):
    """The workload of its cell is called "8 concurrent"."""

    kind = GenerationMeasurement
    reference = REFERENCE
    list_batch_sizes = staticmethod(list_batch_sizes)

    def choose_batch_sizes(self) -> None:
        for name, result in tqdm(self.results.items(), desc=f"{self.title}: batch sizes", leave=False):
            sizes = self.list_batch_sizes(name, read_concurrency(result.workload))
            result.batch_size = sizes[0]
            if len(sizes) > 1:
                slow_run_s = self.max_s * SLOW_SHARE
                result.batch_size = find_batch_size(partial(self.time_run, name), sizes, sizes[-1], slow_run_s)

    def compare(self) -> None:
        """The answers of the last round."""
        with tempfile.TemporaryDirectory() as folder:
            answers: dict[str, list[list[int]]] = {}
            for name in self.results:
                path = Path(folder) / f"{len(answers)}.npz"
                self.ask(name, "answers", path=str(path))
                if not self.results[name].failure:
                    answers[name] = load_lists(path)
        for name in answers.keys() if self.reference in answers else ():
            self.results[name].agreement = measure_agreement(answers[name], answers[self.reference])


def name_workload(concurrency: int) -> str:
    return f"{concurrency} concurrent"


def read_concurrency(workload: str) -> int:
    return int(workload.split()[0])


def measure_agreement(answers: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> float:
    """Share of the tokens that come before the first difference. What comes after one is another text."""
    num_equal = sum(count_equal(ours, theirs) for ours, theirs in zip(answers, reference, strict=True))
    return num_equal / sum(len(answer) for answer in reference)


def count_equal(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Tokens from the start on."""
    for place, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return place
    return min(len(ours), len(theirs))
