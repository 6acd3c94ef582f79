"""`python -m bench.seq2seq.speech`: seconds of speech that Whisper's shape hears in a second, Padless and its peers.

Clips of 30 seconds, whisper-tiny's shape with random weights, 100 tokens for each, the most probable each time. From
features to tokens: the spectrogram, which all make alike, is not in the time.
"""

import argparse
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

from bench.generation.reporting import build_table
from bench.peers.environments import find_cache
from bench.peers.fleet import Fleet
from bench.peers.measuring import Cell
from bench.peers.options import add_engines
from bench.report import format_table, write_results
from bench.seq2seq.catalogue import PEERS
from bench.seq2seq.directories import WHISPER, find_model
from bench.seq2seq.features import CLIP_S, MAX_CONCURRENT, sample_clips
from bench.seq2seq.measuring import Seq2SeqMeasurement, Seq2SeqRun, name_search
from bench.seq2seq.session import Search, save_workload

HEARING = {key: replace(peer, worker=f"speech_{peer.worker}") for key, peer in PEERS.items()}
LEAST_CLIPS = 2


@dataclass
class SpeechMeasurement(Seq2SeqMeasurement):
    unit: ClassVar[str] = "seconds heard/s"

    def rate(self) -> float:
        return super().rate() * CLIP_S


class SpeechRun(Seq2SeqRun):
    kind = SpeechMeasurement


def measure(arguments: argparse.Namespace) -> list[SpeechMeasurement]:
    fleet = Fleet(HEARING, find_cache(), arguments.engines)
    model = find_model(WHISPER, fleet.cache)
    with ExitStack() as stack:
        workers, failures = fleet.load(model, arguments.threads, stack)
        results = [SpeechMeasurement(WHISPER, arguments.threads, "all", *failure) for failure in failures.items()]
        for concurrency in arguments.concurrency:
            search = Search(1, concurrency)
            cell = Cell(WHISPER, arguments.threads, name_search(search))
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "tasks.npz"
                save_workload(path, sample_clips(max(LEAST_CLIPS, concurrency)), search)
                results += SpeechRun(cell, workers, max_s=arguments.seconds).measure(path, arguments.rounds)
            print(format_table(build_table(results)), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--concurrency", nargs="+", type=int, choices=range(1, MAX_CONCURRENT + 1), default=(1, 8), metavar="N"
    )
    parser.add_argument("--threads", type=int, default=2)
    add_engines(parser, HEARING)
    parser.add_argument("--rounds", type=int, default=5, help="at most; slow cells get fewer (default: %(default)s)")
    parser.add_argument("--dry", action="store_true", help="prints only")
    arguments = parser.parse_args()
    results = measure(arguments)
    if not arguments.dry:
        write_results("seq2seq-speech", build_table(results), [asdict(result) for result in results])


if __name__ == "__main__":
    main()
