"""What the comparisons of tasks share: the command line, and each engine at its best batch size, in turn."""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.peers.catalogue import Peer
from bench.peers.environments import find_cache
from bench.peers.fleet import Fleet
from bench.peers.measuring import Cell, list_batch_sizes
from bench.peers.protocol import save_workload
from bench.report import format_table, write_results
from bench.tasks.directories import find_model
from bench.tasks.measuring import TaskMeasurement, TaskRun
from bench.tasks.reporting import build_table
from bench.tasks.traffic import TokenArray

QUICK_SEQUENCES = 12


@dataclass(frozen=True)
class Plan:
    """`name`: of the files in bench/results. `models`: names in `directories`. `sample` makes so many sequences."""

    name: str
    models: tuple[str, ...]
    peers: Mapping[str, Peer]
    sample: Callable[[int], list[TokenArray]]
    num_seqs: int
    threads: tuple[int, ...] = (1, 2)
    has_peaks: bool = False
    """Whether the peak of memory is measured besides, which workers with a MemorySession can."""


def parse_arguments(doc: str, plan: Plan) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", nargs="+", type=int, default=plan.threads)
    parser.add_argument("--sequences", type=int, default=plan.num_seqs, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="at most (default: %(default)s)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=25.0,
        help="of rounds, of which there are three at least (default: %(default)g)",
    )
    parser.add_argument("--quick", action="store_true", help="two rounds of few sequences on one thread; prints only")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.threads, arguments.sequences = 2, [1], QUICK_SEQUENCES
    return arguments


def run_plan(doc: str, plan: Plan) -> None:
    """The main function of a comparison; `doc` is what --help says."""
    arguments = parse_arguments(doc, plan)
    fleet = Fleet(plan.peers, find_cache())
    results: list[TaskMeasurement] = []
    for model in plan.models:
        for threads in arguments.threads:
            results += measure(fleet, plan, Cell(model, threads, str(arguments.sequences)), arguments)
            if not arguments.quick:
                write_results(plan.name, build_table(results), [asdict(result) for result in results])
    if arguments.quick:
        print(format_table(build_table(results)))


def measure(fleet: Fleet, plan: Plan, cell: Cell, arguments: argparse.Namespace) -> list[TaskMeasurement]:
    directory, sequences = find_model(cell.model, fleet.cache), plan.sample(arguments.sequences)
    with tempfile.TemporaryDirectory() as folder:
        workload = Path(folder) / "workload.npz"
        save_workload(workload, sequences)
        with ExitStack() as stack:
            workers, failures = fleet.load(directory, cell.threads, stack)
            run = TaskRun(cell, workers, sizes=list_batch_sizes(arguments.sequences), max_s=arguments.seconds)
            results = run.measure(workload, arguments.rounds)
        if plan.has_peaks:
            measure_peaks(fleet, directory, workload, results)
    return [TaskMeasurement(*cell, *failure) for failure in failures.items()] + results


def measure_peaks(fleet: Fleet, directory: Path, workload: Path, results: Sequence[TaskMeasurement]) -> None:
    """At each engine's best batch size, in fresh processes: what was freed before may still be held."""
    with ExitStack() as stack:
        workers, _ = fleet.load(directory, results[0].threads, stack)
        for result in results:
            if not result.failure:
                workers[result.engine].ask("prepare", workload=str(workload))
                answer = workers[result.engine].ask("peak", batch_size=result.batch_size)
                result.peak_bytes = answer["peak_bytes"]
