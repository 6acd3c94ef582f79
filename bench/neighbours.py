"""`python -m bench.neighbours CHECKOUT`: what a step takes on two threads, alone and beside a process that never rests.

MiniLM and stories15M in INT8, the engine and its loop without HTTP, in turn with another checkout. The process beside
them turns in circles, as an HTTP process does at its limit: it takes one of two cores, or half of each. The ratio is
the other's time by ours.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.generation.decoders import find_decoder
from bench.generation.ours import ask_all, build_ours
from bench.generation.session import Task
from bench.minilm import build_ours as build_encoder
from bench.null_server import show_spread
from bench.report import write_results
from bench.traffic import pack_sorted, sample_sequences
from server.processes.startup import spare_garbage_collector

ROOT = Path(__file__).parents[1]
ROUNDS = 5
THREADS = 2
SECONDS = 2.0
NUM_TOKENS = 100
BATCHES = {"1 text": [16], "8 texts": [8, 12, 16, 24, 32, 40, 48, 60], "64 texts": [8, 16, 24, 32, 40, 64, 96, 160] * 8}
ANSWERS = (1, 8)
NEIGHBOURS = {"alone": 0, "beside one": 1}
WORKER = "--worker"


def measure() -> dict[str, float]:
    """Milliseconds of a step, at the median; of generations, for a token of each, on average over an answer."""
    found = {}
    engine, rng = build_encoder(precision="int8", threads=THREADS), np.random.default_rng(0)
    for case, lengths in BATCHES.items():
        batch = pack_sorted(sample_sequences(np.array(lengths), rng))
        found[f"MiniLM, {case}"] = statistics.median(repeat(lambda batch=batch: engine.run(batch))) * 1e3
    engine.close()
    return found | asyncio.run(measure_generation())


def repeat(run: Callable[[], object]) -> Iterator[float]:
    """How long it took each time."""
    ends_s = time.perf_counter() + SECONDS
    while (started_s := time.perf_counter()) < ends_s:
        run()
        yield time.perf_counter() - started_s


async def measure_generation() -> dict[str, float]:
    model = find_decoder("stories15m")
    ours = build_ours(
        model, threads=THREADS, max_batch_requests=max(ANSWERS), max_total_tokens=2 * NUM_TOKENS, precision="int8"
    )
    spare_garbage_collector()  # as a server does, in both checkouts
    await ours.loop.start()
    found = {}
    for answers in ANSWERS:
        tasks = [Task([1, *range(300, 308)], NUM_TOKENS)] * answers
        replies = await ask_all(ours, tasks, answers)
        # Tokens may come several at once.
        each_s = [(reply.times_s[-1] - reply.times_s[0]) / (NUM_TOKENS - 1) for reply in replies]
        found[f"stories15M, {plural(answers)}"] = statistics.median(each_s) * 1e3
    await ours.loop.close()
    return found


def plural(answers: int) -> str:
    return "1 answer" if answers == 1 else f"{answers} answers"


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes that never rest."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def ask(root: Path, num_neighbours: int) -> dict[str, float]:
    """This file's measurement, on the code of a checkout."""
    command = [sys.executable, "-P", __file__, WORKER, str(root)]
    environment = {"GOMP_SPINCOUNT": "2000"} | os.environ | {"PYTHONPATH": str(root)}
    with neighbours(num_neighbours):
        answer = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(answer.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(WORKER, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("checkout", type=Path, help="of another commit")
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure()))
        return
    roots = ROOT, arguments.checkout.resolve()
    table = [["case", "neighbours", "ms now", "before", "before by now (least to most)"]]
    rows = {}
    for how, count in NEIGHBOURS.items():
        rounds = [[ask(root, count) for root in roots] for _ in range(ROUNDS)]
        for case in rounds[0][0]:
            now, before = zip(*([found[case] for found in each] for each in rounds), strict=True)
            ratios = [b / a for a, b in zip(now, before, strict=True)]
            medians = [f"{statistics.median(values):.2f}" for values in (now, before)]
            table.append([case, how, *medians, show_spread(ratios, ".2f")])
            rows[f"{case}, {how}"] = {"now": now, "before": before}
    write_results("neighbours", table, rows)


if __name__ == "__main__":
    main()
