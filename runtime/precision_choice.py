"""`precision: auto`: which precision runs batches of which size, by measurement, and the file that remembers it.

INT8 and BF16 lose to FP32 where a batch is too small for their gain to pay for quantising and converting: the tables
FasterTransformer publishes show INT8 slower than FP16 at a batch of 1 x 32. So each size is timed on its own.
"""

import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from runtime.batch import Batch, FloatArray
from runtime.cache import cache_dir
from runtime.engine import Engine, Progress

ROUNDS = 3
MIN_GAIN = 1.03
"""A less exact precision has to be faster by this factor."""


@dataclass(frozen=True, slots=True)
class PrecisionTable:
    """`by_tokens`: (largest num_tokens, precision), ascending; the last entry holds for all that is larger.

    `agreement`: of each candidate with FP32, 1 for no difference, see `measure_agreement`. `speed`: for each entry of
    `by_tokens` the candidates' times by FP32's, which are empty where nothing was left to choose from.
    """

    by_tokens: tuple[tuple[int, str], ...]
    agreement: Mapping[str, float]
    speed: tuple[Mapping[str, float], ...] = ()

    def find(self, num_tokens: int) -> str:
        for limit, precision in self.by_tokens:
            if num_tokens <= limit:
                return precision
        return self.by_tokens[-1][1]

    @property
    def used(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(precision for _, precision in self.by_tokens))

    def __str__(self) -> str:
        return ", ".join(f"{precision} up to {limit} tokens" for limit, precision in self.by_tokens)


def measure_table(
    engines: Mapping[str, Engine],
    batches: Sequence[Batch],
    agreement: Mapping[str, float],
    min_agreement: float,
    progress: Progress,
) -> PrecisionTable:
    """Time the candidates that agree well enough, in turn, on batches of growing size. `engines`: most exact first."""
    fits = [name for name in engines if agreement[name] >= min_agreement]
    if len(fits) == 1:
        return PrecisionTable(((batches[-1].num_tokens, fits[0]),), agreement)
    chosen: list[tuple[int, str]] = []
    speeds: list[Mapping[str, float]] = []
    for index, batch in enumerate(batches):
        progress("choosing the precision", index, len(batches))
        seconds = {name: [] for name in fits}  # type: dict[str, list[float]]
        for _ in range(ROUNDS):
            for name in fits:
                seconds[name].append(time_run(engines[name], batch))
        median = {name: statistics.median(times) for name, times in seconds.items()}
        chosen.append((batch.num_tokens, choose_fastest(median)))
        speeds.append({name: round(median[fits[0]] / median[name], 2) for name in fits})
    progress("choosing the precision", len(batches), len(batches))
    return merge_equal(PrecisionTable(tuple(chosen), agreement, tuple(speeds)))


def time_run(engine: Engine, batch: Batch) -> float:
    """Seconds."""
    started_s = time.perf_counter()
    engine.run(batch)
    return time.perf_counter() - started_s


def choose_fastest(seconds: Mapping[str, float]) -> str:
    """Of names ordered from the most exact: a later one only where it gains enough."""
    best = next(iter(seconds))
    for name in seconds:
        if seconds[name] * MIN_GAIN < seconds[best]:
            best = name
    return best


def merge_equal(table: PrecisionTable) -> PrecisionTable:
    """Neighbouring sizes of one precision become one entry, with the speeds of the largest."""
    ends = [
        index
        for index, (_, precision) in enumerate(table.by_tokens)
        if index + 1 == len(table.by_tokens) or table.by_tokens[index + 1][1] != precision
    ]
    by_tokens = tuple(table.by_tokens[index] for index in ends)
    return PrecisionTable(by_tokens, table.agreement, tuple(table.speed[index] for index in ends))


def measure_agreement(found: Mapping[str, FloatArray], expected: Mapping[str, FloatArray]) -> float:
    """Of the worst row of all outputs: 1 - |a - b|^2 / (2 |b|^2), which is the cosine where rows have length 1.

    Unlike a cosine it sees a wrong length, and a wrong number where a row is one number.
    """
    return min(compare_rows(found[name], rows) for name, rows in expected.items())


def compare_rows(found: FloatArray, expected: FloatArray) -> float:
    axes = tuple(range(1, expected.ndim))
    lost = ((found - expected) ** 2).sum(axes) / np.maximum((expected**2).sum(axes), 1e-12)
    return float(1 - lost.max() / 2)


def recall_table(path: Path, measure: Callable[[], PrecisionTable]) -> PrecisionTable:
    """What the file says; measured and written if there is none that can be read. A cache that fails is no error."""
    found = read_table(path)
    if found is None:
        found = measure()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            written = path.with_suffix(f".{os.getpid()}")
            written.write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")
            written.replace(path)
        except OSError:
            pass
    return found


def read_table(path: Path) -> PrecisionTable | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        by_tokens = tuple((int(limit), str(precision)) for limit, precision in document["by_tokens"])
        return PrecisionTable(by_tokens, document["agreement"], tuple(document["speed"])) if by_tokens else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def table_path(*causes: object) -> Path:
    """One file for each model, configuration and machine: everything the measurement depends on goes into its name."""
    cpu = Path("/proc/cpuinfo")
    models = {line for line in cpu.read_text().splitlines() if line.startswith("model name")} if cpu.exists() else set()
    digest = hashlib.sha256(repr((sorted(models), platform.machine(), os.cpu_count(), *causes)).encode())
    return cache_dir("precision") / f"{digest.hexdigest()[:16]}.json"
