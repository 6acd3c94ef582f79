"""The worker's side of the conversation with `bench.seq2seq`: that of `bench.generation.session`, less what differs.

A task's `input_ids` are those of a source, and `num_tokens` says how long its answer is to be, end tokens or not; 0: it
ends where it ends. How answers are searched for is in the workload's file.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.generation.session import GenerationSession, Task, save_tasks
from bench.peers.protocol import Convert, run_worker

MAX_CONCURRENT, MAX_BEAMS = 64, 4
"""What engines make room for."""
MAX_SOURCE_TOKENS, MAX_TARGET_TOKENS = 128, 256


class Search(NamedTuple):
    """How answers are searched for, and the most of them that may be under way at a time."""

    beam_width: int
    max_concurrent: int


Translate = Callable[[Sequence[Task], int, Search], list[list[int]]]
"""Tasks, the size of batches and the search to answers in the same order, without the token that ended them."""
LoadTranslator = Callable[[Path, Path, dict[str, Any], int], Translate]
"""As LoadGenerator."""


class Seq2SeqSession(GenerationSession):
    """One loaded model, and the sources it is timed on."""

    def __init__(self, load: LoadTranslator) -> None:
        super().__init__(self.load_translator)
        self.open = load
        self.search = Search(1, 1)

    def load_translator(self, *arguments: Any) -> Callable[[Sequence[Task], int], list[list[int]]]:
        translate = self.open(*arguments)
        return lambda tasks, batch_size: translate(tasks, batch_size, self.search)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks. Raises whatever the peer raises."""
        if request["op"] == "prepare":
            self.search = load_search(Path(request["workload"]))
        return super().answer(request)


def serve(load: LoadTranslator, convert: Convert | None = None) -> None:
    """The main function of a worker."""
    run_worker(Seq2SeqSession(load), convert)


def save_workload(path: Path, tasks: Sequence[Task], search: Search) -> None:
    save_tasks(path, tasks, search=np.array(search, np.int64))


def load_search(path: Path) -> Search:
    with np.load(path) as arrays:
        return Search(*arrays["search"].tolist())
