"""`python -m bench.generation`: generated tokens per second of Padless and its peers, by requests at a time.

Prompts and answers of mixed lengths, greedy, each answer exactly as long as it is asked to be. Each peer runs in a
virtual environment of its own with pinned versions, in the way of batching that suits it and at its best batch size.
Only tokens that were asked for count: what a padded batch generates beyond an answer's end does not.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from bench.generation.catalogue import PEERS
from bench.generation.measuring import GenerationMeasurement, GenerationRun, name_workload
from bench.generation.reporting import build_table
from bench.generation.session import MAX_CONCURRENT, Task, save_tasks
from bench.generation.workload import MODELS, count_requests, find_model, sample_tasks
from bench.peers.environments import find_cache
from bench.peers.fleet import Fleet
from bench.peers.measuring import Cell
from bench.peers.options import add_engines
from bench.peers.processes import WorkerProcess
from bench.peers.reporting import plot
from bench.report import RESULTS, format_table, write_results


def measure(arguments: argparse.Namespace) -> Iterator[list[GenerationMeasurement]]:
    """Everything measured so far, after each model and thread count."""
    results: list[GenerationMeasurement] = []
    fleet = Fleet({key: PEERS[key] for key in arguments.peers}, find_cache(), arguments.engines)
    for name in arguments.models:
        model = find_model(name)
        for threads in arguments.threads:
            with ExitStack() as stack:
                workers, failures = fleet.load(model, threads, stack)
                results += [GenerationMeasurement(name, threads, "all", *failure) for failure in failures.items()]
                for concurrency in arguments.concurrency:
                    tasks = sample_tasks(model, MODELS[name], count_requests(concurrency, arguments.waves))
                    cell = Cell(name, threads, name_workload(concurrency))
                    results += measure_cell(cell, tasks, workers, arguments)
            yield results


def measure_cell(
    cell: Cell, tasks: list[Task], workers: Mapping[str, WorkerProcess], arguments: argparse.Namespace
) -> list[GenerationMeasurement]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tasks.npz"
        save_tasks(path, tasks)
        measurements = GenerationRun(cell, workers, max_s=arguments.seconds).measure(path, arguments.rounds)
    print(format_table(build_table(measurements)), flush=True)
    return measurements


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=tuple(MODELS))
    parser.add_argument(
        "--concurrency", nargs="+", type=int, choices=range(1, MAX_CONCURRENT + 1), default=(1, 8, 32), metavar="N"
    )
    parser.add_argument("--threads", nargs="+", type=int, default=(2,))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=tuple(PEERS), help="default: all")
    add_engines(parser, PEERS)
    parser.add_argument("--waves", type=int, default=2, help="requests for each at a time (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="at most; slow cells get fewer (default: %(default)s)")
    parser.add_argument("--name", default="generation", help="of the files in bench/results (default: %(default)s)")
    parser.add_argument("--dry", action="store_true", help="prints only")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    for results in measure(arguments):
        table = build_table(results)
        if not arguments.dry:
            write_results(arguments.name, table, [asdict(result) for result in results])
            plot(results, RESULTS / f"{arguments.name}.png")
    if arguments.dry:
        print(format_table(table))


if __name__ == "__main__":
    main()
