"""`python -m bench.peers`: Padless and its peers on the same token ids, in turn, each at its best.

Each peer has a virtual environment of its own with pinned versions, made on the first run and kept in the cache
directory. It gets the sequences sorted by length, at the batch size that is fastest for it. Padding or packing, mean
pooling and normalisation are part of the time; tokenising is not. While one engine runs, the others sleep.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bench.peers.catalogue import PEERS, USUAL
from bench.peers.environments import find_cache
from bench.peers.fleet import Fleet
from bench.peers.measuring import Cell, CellRun, Measurement, list_batch_sizes
from bench.peers.options import add_engines
from bench.peers.processes import WorkerProcess
from bench.peers.protocol import save_workload
from bench.peers.reporting import build_table, plot
from bench.peers.weights import MODELS, find_model
from bench.report import RESULTS, format_table, write_results
from bench.traffic import sample_lengths, sample_sequences

SHORT = ("lognormal", "constant-32", "constant-256", "long-tail")
LONG = ("documents", *(f"constant-{length}" for length in (128, 512, 1024, 2048, 4096, 8192)))
"""For models that take so much; `--sequences` says how many, or `--tokens` how many in all."""
WORKLOADS = SHORT + LONG


def count_sequences(kind: str, arguments: argparse.Namespace) -> int:
    """Where there is to be a number of tokens, lengths can be compared by what a token costs."""
    if arguments.tokens and kind.startswith("constant-"):
        return max(1, arguments.tokens // int(kind.removeprefix("constant-")))
    return int(arguments.sequences)


def sample_workload(kind: str, num_seqs: int) -> list[np.ndarray]:
    """The same token ids on every run."""
    rng = np.random.default_rng(0)
    lengths = sample_lengths(kind, num_seqs, rng)
    if kind == "long-tail":
        lengths[0] = 256  # the tail is the point, and at 1 % it may be missing
    return [sequence.input_ids for sequence in sample_sequences(lengths, rng)]


def measure(arguments: argparse.Namespace) -> Iterator[list[Measurement]]:
    """Everything measured so far, after each workload."""
    results: list[Measurement] = []
    fleet = Fleet({key: PEERS[key] for key in arguments.peers}, find_cache(), arguments.engines)
    for name in arguments.models:
        model = find_model(name, fleet.cache)
        for threads in arguments.threads:
            with ExitStack() as stack:
                workers, failures = fleet.load(model, threads, stack)
                results += [Measurement(name, threads, "all", *failure) for failure in failures.items()]
                for kind in arguments.workloads:
                    results += measure_cell(Cell(name, threads, kind), workers, arguments)
                    yield results


def measure_cell(cell: Cell, workers: Mapping[str, WorkerProcess], arguments: argparse.Namespace) -> list[Measurement]:
    num_seqs = count_sequences(cell.workload, arguments)
    sizes = [arguments.batch] if arguments.batch else list_batch_sizes(num_seqs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "workload.npz"
        save_workload(path, sample_workload(cell.workload, num_seqs))
        run = CellRun(cell, workers, sizes=sizes, max_s=arguments.seconds)
        measurements = run.measure(path, arguments.rounds)
    print(format_table(build_table(measurements)), flush=True)
    return measurements


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=SHORT)
    parser.add_argument("--threads", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=USUAL, help="default: all of encoders")
    add_engines(parser, PEERS)
    parser.add_argument(
        "--rounds", type=int, default=7, help="at most; slow workloads get fewer (default: %(default)s)"
    )
    parser.add_argument("--sequences", type=int, default=64, help="per workload (default: %(default)s)")
    parser.add_argument("--tokens", type=int, help="per workload of a constant length, instead of --sequences")
    parser.add_argument("--batch", type=int, help="a batch size for all, instead of the best one of each")
    parser.add_argument("--name", default="peers", help="of the files in bench/results (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two rounds of MiniLM on log-normal lengths; prints only")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.models, arguments.workloads = 2, ["minilm"], ["lognormal"]
    return arguments


def main() -> None:
    arguments = parse_arguments()
    for results in measure(arguments):
        if not arguments.quick:
            write_results(arguments.name, build_table(results), [asdict(result) for result in results])
            plot(results, RESULTS / f"{arguments.name}.png")
    if arguments.quick:
        print(format_table(build_table(results)))


if __name__ == "__main__":
    main()
