"""`python -m bench.gpu`: checks and times everything on a CUDA device within nine minutes, what matters most first.

    check            each kernel, and small engines, against references on the CPU
    kernels          operations and bytes per second, beside what the device reaches in a large GEMM and a copy
    fastertransformer, bytetransformer
                     BERT-base over half-full batches, in the tables of these two projects
    decode           a generator's steps, and how far they are from reading its weights and cache once
    memory           activations over 1,000 mixed batches

Each part is a process of its own, which a fault on the device ends alone, and has its share of the time. Tables are
written after each case and plots after each part; what there was no time for is said in a line.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.gpu.checking import check_all
from bench.gpu.decoding import time_decoding
from bench.gpu.encoder_tables import compare_bytetransformer, compare_fastertransformer
from bench.gpu.kernels import time_kernels
from bench.gpu.memory import compare_memory
from bench.gpu.part import Part
from bench.gpu.target import Target
from bench.report import RESULTS

PARTS: dict[str, tuple[Callable[[Part], None], float]] = {
    "check": (check_all, 0.15),
    "kernels": (time_kernels, 0.2),
    "fastertransformer": (compare_fastertransformer, 0.3),
    "bytetransformer": (compare_bytetransformer, 0.12),
    "decode": (time_decoding, 0.13),
    "memory": (compare_memory, 0.1),
}
"""With the share of the time that each may take; what one leaves the next ones get."""
BUDGET_S = 520.0
LEAST_S = 10.0
"""In less nothing is started: a process has to import and compile first."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=tuple(PARTS))
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="seconds in all (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of tables and plots (default: bench/results)")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU: shows that everything runs")
    parser.add_argument("--here", action="store_true", help="one part, in this process")
    return parser.parse_args()


def run_part(name: str, target: Target, folder: Path, seconds: float) -> Part:
    """In this process, which keeps to `seconds` between cases."""
    folder.mkdir(parents=True, exist_ok=True)
    part = Part(name, target, folder, seconds)
    PARTS[name][0](part)
    return part


def run_apart(name: str, arguments: argparse.Namespace, seconds: float, left_s: float) -> bool:
    """In a process of its own, which is ended where one case takes all that is left. Whether all of it ran."""
    command = [sys.executable, "-m", "bench.gpu", "--here", "--parts", name, "--budget-s", f"{seconds:.0f}"]
    command += ["--out", str(arguments.out), *(["--dry-run"] if arguments.dry_run else [])]
    try:
        return subprocess.run(command, timeout=left_s, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"{name}: ended, all of the time is spent", flush=True)
        return False


def main() -> None:
    arguments = parse_arguments()
    if not (arguments.dry_run or torch.cuda.is_available()):
        raise SystemExit("torch finds no CUDA device here; --dry-run takes the CPU in its place")
    if arguments.here:
        part = run_part(arguments.parts[0], Target(arguments.dry_run), arguments.out, arguments.budget_s)
        raise SystemExit(bool(part.problems))
    end_s, is_whole, spare = time.perf_counter() + arguments.budget_s, True, 0.0
    for name in arguments.parts:
        left_s, started_s = end_s - time.perf_counter(), time.perf_counter()
        if left_s < LEAST_S:
            print(f"{name}: skipped, the time is spent", flush=True)
            is_whole = False
            continue
        share = PARTS[name][1] / sum(PARTS[each][1] for each in arguments.parts) * arguments.budget_s + spare
        print(f"== {name}, {left_s:.0f} s left", flush=True)
        is_whole &= run_apart(name, arguments, min(share, left_s), left_s)
        spare = share - (time.perf_counter() - started_s)
    raise SystemExit(not is_whole)


if __name__ == "__main__":
    main()
