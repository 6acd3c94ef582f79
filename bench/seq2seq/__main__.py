"""`python -m bench.seq2seq`: answers per second of encoder-decoders, Padless and its peers, by requests at a time.

Sources of mixed length, the most probable token each time and a search with four beams. Each peer runs in a virtual
environment of its own with pinned versions, and gets all sources of a run at once, sorted by length, at its best batch
size; Padless gets the next one when it has answered one. Answers of the real model end where they end, those of random
weights have the length that they are asked to have.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from bench.generation.reporting import build_table
from bench.peers.environments import find_cache
from bench.peers.fleet import Fleet
from bench.peers.measuring import Cell
from bench.peers.options import add_engines
from bench.peers.processes import WorkerProcess
from bench.peers.reporting import plot
from bench.report import RESULTS, format_table, write_results
from bench.seq2seq.catalogue import PEERS
from bench.seq2seq.directories import MODELS, find_model
from bench.seq2seq.measuring import Seq2SeqMeasurement, Seq2SeqRun, name_search
from bench.seq2seq.session import MAX_BEAMS, MAX_CONCURRENT, Search, save_workload
from bench.seq2seq.workload import count_sources, sample_tasks


def measure(arguments: argparse.Namespace) -> Iterator[list[Seq2SeqMeasurement]]:
    """Everything measured so far, after each cell."""
    results: list[Seq2SeqMeasurement] = []
    fleet = Fleet({key: PEERS[key] for key in arguments.peers}, find_cache(), arguments.engines)
    for name in arguments.models:
        model = find_model(name, fleet.cache)
        with ExitStack() as stack:
            workers, failures = fleet.load(model, arguments.threads, stack)
            results += [Seq2SeqMeasurement(name, arguments.threads, "all", *failure) for failure in failures.items()]
            for beam_width in arguments.beams:
                for concurrency in arguments.concurrency:
                    search = Search(beam_width, concurrency)
                    results += measure_cell(name, model, search, workers, arguments)
                    yield results


def measure_cell(
    name: str, model: Path, search: Search, workers: Mapping[str, WorkerProcess], arguments: argparse.Namespace
) -> list[Seq2SeqMeasurement]:
    tasks = sample_tasks(name, model, count_sources(search.max_concurrent, arguments.waves))
    cell = Cell(name, arguments.threads, name_search(search))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tasks.npz"
        save_workload(path, tasks, search)
        measurements = Seq2SeqRun(cell, workers, max_s=arguments.seconds).measure(path, arguments.rounds)
    print(format_table(build_table(measurements)), flush=True)
    return measurements


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument(
        "--concurrency", nargs="+", type=int, choices=range(1, MAX_CONCURRENT + 1), default=(1, 16, 64), metavar="N"
    )
    parser.add_argument("--beams", nargs="+", type=int, choices=range(1, MAX_BEAMS + 1), default=(1, 4))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=tuple(PEERS), help="default: all")
    add_engines(parser, PEERS)
    parser.add_argument("--waves", type=int, default=2, help="sources for each at a time (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="at most; slow cells get fewer (default: %(default)s)")
    parser.add_argument("--name", default="seq2seq", help="of the files in bench/results (default: %(default)s)")
    parser.add_argument("--dry", action="store_true", help="prints only")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    for results in measure(arguments):
        if not arguments.dry:
            write_results(arguments.name, build_table(results), [asdict(result) for result in results])
            plot(results, RESULTS / f"{arguments.name}.png")


if __name__ == "__main__":
    main()
