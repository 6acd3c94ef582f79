"""`python -m bench.engine`: the engine on one mixed batch, against Hugging Face padded, sorted, at its best batch size.

The batch: 64 sequences, log-normal lengths (median 40, 8 to 256). Threads 1 and 2, each in a process of its own.
"""

import json
import subprocess
import sys

import numpy as np
import torch

from bench.minilm import build_huggingface, build_ours
from bench.report import write_results
from bench.timing import Comparison, compare, format_ratio
from bench.traffic import pack_sorted, sample_lengths, sample_sequences

NUM_SEQS = 64
BATCH_SIZES = (4, 8, 16)
ROUNDS = 7


def measure(threads: int) -> dict[str, dict[str, list[float] | str]]:
    """Times of every candidate. For Hugging Face the best batch size is found first, then used."""
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    sequences = sample_sequences(sample_lengths("lognormal", NUM_SEQS, rng), rng)
    batch = pack_sorted(sequences)
    candidates = {}
    for precision in ("fp32", "bf16"):
        engine = build_ours(precision=precision, threads=threads)
        candidates[f"padless {precision}"] = lambda engine=engine: engine.run(batch)
    reference = build_ours(kind="reference", threads=threads)
    candidates["padless reference fp32"] = lambda: reference.run(batch)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        run = build_huggingface(dtype)
        sizes = {str(size): (lambda size=size, run=run: run(sequences, size)) for size in BATCH_SIZES}
        tried = compare(sizes, rounds=2, title=f"Hugging Face {name}: batch size")
        best = int(min(BATCH_SIZES, key=lambda size: tried.median_s(str(size))))
        candidates[f"Hugging Face {name}, batch {best}"] = lambda run=run, best=best: run(sequences, best)
    return {"seconds": compare(candidates, rounds=ROUNDS, title=f"{threads} threads").seconds}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
        return
    results, table = {}, [["engine", "threads", "median ms", "times padless fp32 (10-90 %)", "times padless bf16"]]
    for threads in (1, 2):
        answer = subprocess.run(
            [sys.executable, "-m", "bench.engine", str(threads)], stdout=subprocess.PIPE, text=True, check=True
        )
        results[f"{threads} threads"] = json.loads(answer.stdout.splitlines()[-1])
        comparison = Comparison(results[f"{threads} threads"]["seconds"])
        for name in comparison.seconds:
            ratios = [format_ratio(comparison.ratio(name, f"padless {precision}")) for precision in ("fp32", "bf16")]
            table.append([name, str(threads), f"{comparison.median_s(name) * 1e3:.0f}", *ratios])
    write_results("engine", table, results)


if __name__ == "__main__":
    main()
