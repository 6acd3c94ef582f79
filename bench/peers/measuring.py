"""Loaded workers on one workload: the best batch size of each, then rounds in turn, then how exact each is."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from tqdm import tqdm

from bench.peers.catalogue import REFERENCE
from bench.peers.processes import WorkerError, WorkerProcess
from bench.peers.protocol import Rows

BATCH_SIZES = (1, 4, 8, 16, 32, 64)
FIRST_BATCH_SIZE = 8
SEARCH_TURNS = 2
"""How often a batch size and its neighbours are timed, in turn, before the fastest run of each decides."""
SLOW_SHARE = 1 / 120
"""A batch size whose run takes this share of a cell's time is timed once: noise and cold caches matter less."""
MIN_ROUNDS = 3
MAX_CELL_S = 240.0
"""No further round of a workload starts after this, once there are MIN_ROUNDS, unless another time is given."""


class Cell(NamedTuple):
    """What engines are compared on."""

    model: str
    threads: int
    workload: str


@dataclass
class Measurement:
    """One engine in one cell. `failure` says why it did not run; the fields after it then mean nothing."""

    unit: ClassVar[str] = "tokens/s"
    digits: ClassVar[int] = 0
    """Of a rate, behind the point."""
    model: str
    threads: int
    workload: str
    engine: str
    failure: str = ""
    num_tokens: int = 0
    batch_size: int = 0
    seconds: list[float] = field(default_factory=list)
    """One entry per round; all engines of a round ran right after one another."""
    cpus: float = 0.0
    """Processor seconds per second of the rounds: how many cores were busy."""
    settle_s: float = 0.0
    """The longest that the others waited until this engine's threads slept."""
    cosine: float | None = None
    """With Hugging Face's fp32 embeddings, of the sequence where it is lowest; None if those are not there."""

    def median_s(self) -> float:
        return statistics.median(self.seconds)

    def rate(self) -> float:
        """In `unit`, of the tokens that are there; padding does not count."""
        return self.num_tokens / self.median_s()


Time = Callable[[int], float]
"""Batch size to seconds."""


def find_batch_size(
    time_run: Time,
    sizes: Sequence[int] = BATCH_SIZES,
    first: int = FIRST_BATCH_SIZE,
    slow_run_s: float = MAX_CELL_S * SLOW_SHARE,
) -> int:
    """Climb from `first` to neighbours as long as they are faster; `sizes` is ascending."""
    seconds: dict[int, float] = {}
    best = sizes.index(first)
    while True:
        tried = sizes[max(0, best - 1) : best + 2]
        for _ in range(SEARCH_TURNS):
            for size in tried:
                if seconds.get(size, 0.0) < slow_run_s:
                    seconds[size] = min(seconds.get(size, math.inf), time_run(size))
        fastest = sizes.index(min(tried, key=seconds.__getitem__))
        if fastest == best:
            return sizes[best]
        best = fastest


def list_batch_sizes(num_seqs: int) -> Sequence[int]:
    """Those that make a difference: one batch of all is the largest."""
    return BATCH_SIZES[: 1 + sum(size < num_seqs for size in BATCH_SIZES)]


class CellRun:
    """Loaded workers on one workload. A worker that fails drops out, with its reason; the others go on."""

    kind = Measurement

    def __init__(
        self,
        cell: Cell,
        workers: Mapping[str, WorkerProcess],
        *,
        sizes: Sequence[int] = BATCH_SIZES,
        max_s: float = MAX_CELL_S,
    ) -> None:
        """`sizes`: of the batches that are tried. `max_s`: see MAX_CELL_S."""
        self.title = f"{cell.model}, {cell.workload}, {cell.threads} threads"
        self.workers, self.sizes, self.max_s = workers, sizes, max_s
        self.results = {name: self.kind(*cell, name) for name in workers}
        self.cpu_seconds = dict.fromkeys(workers, 0.0)

    def ask(self, name: str, op: str, **arguments: object) -> dict[str, Any]:
        """The answer of a worker; empty if it fails now or failed before."""
        if self.results[name].failure:
            return {}
        try:
            return self.workers[name].ask(op, **arguments)
        except WorkerError as error:
            self.results[name].failure = str(error)
            return {}

    def measure(self, workload: Path, rounds: int) -> list[Measurement]:
        for name, result in self.results.items():
            result.num_tokens = int(self.ask(name, "prepare", workload=str(workload)).get("num_tokens", 0))
        self.choose_batch_sizes()
        self.run_rounds(rounds)
        self.compare()
        return list(self.results.values())

    def choose_batch_sizes(self) -> None:
        for name, result in tqdm(self.results.items(), desc=f"{self.title}: batch sizes", leave=False):
            result.batch_size = find_batch_size(
                partial(self.time_run, name),
                self.sizes,
                FIRST_BATCH_SIZE if FIRST_BATCH_SIZE in self.sizes else self.sizes[-1],
                self.max_s * SLOW_SHARE,
            )

    def time_run(self, name: str, batch_size: int) -> float:
        return float(self.ask(name, "run", batch_size=batch_size).get("seconds", math.inf))

    def run_rounds(self, rounds: int) -> None:
        """A B C A B C ..., each at its best batch size."""
        started_s = time.monotonic()
        for index in tqdm(range(rounds), desc=f"{self.title}: rounds", leave=False):
            if index >= MIN_ROUNDS and time.monotonic() - started_s > self.max_s:
                break
            for name, result in self.results.items():
                answer = self.ask(name, "run", batch_size=result.batch_size)
                if answer:
                    result.seconds.append(answer["seconds"])
                    result.settle_s = max(result.settle_s, answer["settle_seconds"])
                    self.cpu_seconds[name] += answer["cpu_seconds"]
        for name, result in self.results.items():
            result.cpus = self.cpu_seconds[name] / max(sum(result.seconds), 1e-9)

    def compare(self) -> None:
        """The cosine with Hugging Face's rows tells who computes something else."""
        rows = self.collect_rows()
        for name in rows.keys() if REFERENCE in rows else ():
            self.results[name].cosine = find_lowest_cosine(rows[name], rows[REFERENCE])

    def collect_rows(self) -> dict[str, Rows]:
        """Of the last round, by engine."""
        with tempfile.TemporaryDirectory() as folder:
            rows: dict[str, Rows] = {}
            for name in self.results:
                path = Path(folder) / f"{len(rows)}.npy"
                self.ask(name, "embeddings", path=str(path))
                if not self.results[name].failure:
                    rows[name] = np.load(path)
        return rows


def find_lowest_cosine(rows: Rows, reference: Rows) -> float:
    """Of the rows of normalised embeddings, pair by pair."""
    return float((rows.astype(np.float64) * reference).sum(1).min())
