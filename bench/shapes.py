"""`python -m bench.shapes CHECKOUT`: what a step costs whose batch has the shape of the last one, and one that has not.

MiniLM in FP32 and INT8 on one thread, the engine alone, in turn with another checkout: one short text again and
again, and batches of 2 to 8 texts of 4 to 59 tokens, no two of one shape. The ratio is the other's time by ours.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from bench.minilm import build_ours
from bench.report import write_results
from bench.traffic import pack_sorted, sample_sequences

ROOT = Path(__file__).parents[1]
ROUNDS = 3
NUM_SAME, NUM_MIXED = 300, 250
PRECISIONS = ("fp32", "int8")
WORKER = "--worker"


def measure() -> dict[str, float]:
    """Milliseconds of a step with one text, and microseconds for each token of mixed batches."""
    found = {}
    for precision in PRECISIONS:
        engine, rng = build_ours(precision=precision, threads=1), np.random.default_rng(0)
        alone = pack_sorted(sample_sequences(np.array([16]), rng))
        seconds = []
        for _ in range(NUM_SAME):
            started_s = time.perf_counter()
            engine.run(alone)
            seconds.append(time.perf_counter() - started_s)
        found[f"{precision}, one text, ms"] = statistics.median(seconds) * 1e3
        lengths = [rng.integers(4, 60, size=rng.integers(2, 9)) for _ in range(NUM_MIXED)]
        batches = [pack_sorted(sample_sequences(each, rng)) for each in lengths]
        started_s = time.perf_counter()
        for batch in batches:
            engine.run(batch)
        taken_s = time.perf_counter() - started_s
        found[f"{precision}, mixed, us per token"] = taken_s / sum(batch.num_tokens for batch in batches) * 1e6
        engine.close()
    return found


def ask(root: Path) -> dict[str, float]:
    """This file's measurement, on the code of a checkout."""
    command = [sys.executable, "-P", __file__, WORKER, str(root)]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
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
    rounds = [(ask(ROOT), ask(arguments.checkout.resolve())) for _ in range(ROUNDS)]
    table = [["case", "now", "before", "before by now (least to most)"]]
    for case in rounds[0][0]:
        now, before = ([each[which][case] for each in rounds] for which in (0, 1))
        ratios = sorted(other / ours for ours, other in zip(now, before, strict=True))
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        table.append([case, f"{statistics.median(now):.2f}", f"{statistics.median(before):.2f}", spread])
    write_results("shapes", table, {"rounds": rounds})


if __name__ == "__main__":
    main()
