"""Engines of one model in every precision that it could run in, judged and timed: what `precision: auto` chooses from.

INT8 and BF16 lose to FP32 where a batch is too small for their gain to pay for quantising and converting: the tables
FasterTransformer publishes show INT8 slower than FP16 at a batch of 1 x 32. So sizes are timed one by one.
"""

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from runtime.batch import Batch, FloatArray
from runtime.config import AccuracyLevel, Precision
from runtime.engine import Engine, Progress
from runtime.engines.transfer import lay_out
from runtime.precision_choice import Candidate, ChosenPrecision, choose_one, choose_per_bucket
from runtime.quantization.accuracy import Accuracy, AgreesOn, measure_accuracy

ROUNDS = 3
BUDGET_S = 0.4
"""No larger size is begun after this. What a size takes doubles from one to the next, and gains level off."""
SMALLEST = 16
NUM_RANDOM = 128
LEAST_GAIN = 0.001
"""A mean of gains needs them above zero."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What accuracy is judged on: the batches, and in words what is in them."""

    batches: Sequence[Batch]
    name: str


def make_samples(vocab_size: int, seqlen: int, max_seqs: int) -> Samples:
    """Sequences of random tokens, the same each time, for models without texts; `max_seqs` of them to a batch."""
    input_ids = np.random.default_rng(0).integers(0, vocab_size, (NUM_RANDOM, seqlen))
    parts = [input_ids[start : start + max_seqs] for start in range(0, NUM_RANDOM, max_seqs)]
    return Samples([lay_out([seqlen] * len(part), part.ravel()) for part in parts], f"{NUM_RANDOM} random sequences")


def try_engines(
    engines: Mapping[Precision, Engine],
    samples: Samples,
    sizes: Sequence[Batch],
    known: Mapping[Precision, Accuracy],
    level: AccuracyLevel,
    *,
    per_bucket: bool,
    progress: Progress,
) -> ChosenPrecision:
    """`engines`: the most exact first. `sizes`: batches to time, of growing size. `known`: what calibration has
    measured on its user's own texts, which counts more than samples."""
    measured = judge_engines(engines, samples, progress)
    seconds = time_engines(engines, sizes, progress)
    exact = next(iter(engines))
    candidates = [
        Candidate(
            name,
            tuple(max(round(each[exact] / each[name], 3), LEAST_GAIN) for each in seconds),
            known.get(name, measured[name]),
            f"the {known[name].num_texts} held-out texts of its calibration" if name in known else samples.name,
            is_calibrated=name in known,
        )
        for name in engines
    ]
    timed = tuple(batch.num_tokens for batch in sizes[: len(seconds)])
    largest = sizes[-1].num_tokens
    table = choose_per_bucket(candidates, level, (*timed[:-1], largest)) if per_bucket else None
    table = table or choose_one(candidates, level, largest)
    return ChosenPrecision(table, level, timed, tuple(candidates), engines[exact].info.kernels)


def judge_engines(
    engines: Mapping[Precision, Engine], samples: Samples, progress: Progress
) -> dict[Precision, Accuracy]:
    """Each against the first. They run side by side, as far as there are cores: nothing is timed here."""
    progress("judging precisions", 0, 1)
    exact = next(iter(engines.values()))
    output = exact.info.outputs[0].name
    agrees_on: AgreesOn = "labels" if output.endswith("logits") else "neighbours"

    def compute_rows(engine: Engine) -> FloatArray:
        return np.concatenate([np.array(engine.run(batch).arrays[output]) for batch in samples.batches])

    num_at_once = max(1, len(os.sched_getaffinity(0)) // exact.info.threads)
    with ThreadPoolExecutor(num_at_once, "judging") as pool:
        rows = dict(zip(engines, pool.map(compute_rows, engines.values()), strict=True))
    progress("judging precisions", 1, 1)
    expected = next(iter(rows.values()))
    return {name: measure_accuracy(found, expected, agrees_on) for name, found in rows.items()}


def time_engines(
    engines: Mapping[Precision, Engine], sizes: Sequence[Batch], progress: Progress
) -> list[dict[Precision, float]]:
    """Seconds of each engine, for each size that the budget reaches; in turn, so that what slows the machine slows
    all."""
    began_s = time.perf_counter()
    found: list[dict[Precision, float]] = []
    for index, batch in enumerate(sizes):
        progress("timing precisions", index, len(sizes))
        rounds = [{name: time_run(engine, batch) for name, engine in engines.items()} for _ in range(1 + ROUNDS)]
        found.append({name: statistics.median(each[name] for each in rounds[1:]) for name in engines})
        if time.perf_counter() - began_s > BUDGET_S:
            break
    progress("timing precisions", len(sizes), len(sizes))
    return found


def time_run(engine: Engine, batch: Batch) -> float:
    """Seconds."""
    started_s = time.perf_counter()
    engine.run(batch)
    return time.perf_counter() - started_s


def list_sizes(largest: int) -> list[int]:
    """Tokens: 16 and its powers of two below the largest batch, and that."""
    sizes = [SMALLEST]
    while sizes[-1] * 2 < largest:
        sizes.append(sizes[-1] * 2)
    return [size for size in sizes if size < largest] + [largest]
