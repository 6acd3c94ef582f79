"""Loaded workers on the sources of one cell, whose workload is called "16 concurrent, beam 4"."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.generation.measuring import GenerationMeasurement, GenerationRun, name_workload
from bench.generation.session import load_tasks
from bench.peers.measuring import Measurement
from bench.seq2seq.catalogue import REFERENCE, list_batch_sizes
from bench.seq2seq.session import Search


@dataclass
class Seq2SeqMeasurement(GenerationMeasurement):
    """Where answers end by themselves, engines that differ in a token may give more or fewer of them."""

    unit: ClassVar[str] = "answers/s"
    digits: ClassVar[int] = 1
    num_answers: int = 0

    def rate(self) -> float:
        return self.num_answers / self.median_s()


class Seq2SeqRun(GenerationRun):
    kind = Seq2SeqMeasurement
    reference = REFERENCE
    list_batch_sizes = staticmethod(list_batch_sizes)

    def measure(self, workload: Path, rounds: int) -> list[Measurement]:
        for result in self.results.values():
            result.num_answers = len(load_tasks(workload))
        return super().measure(workload, rounds)


def name_search(search: Search) -> str:
    return f"{name_workload(search.max_concurrent)}, beam {search.beam_width}"
