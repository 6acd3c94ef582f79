"""The worker's side of the conversation with `bench.generation`, and what all its workers share.

Workers run in their peer's environment with the repository on PYTHONPATH, so this file needs nothing but numpy. The
conversation is that of `bench.peers.protocol`, with other words:

    {"op": "load", "model": DIR, "converted": DIR, "options": {...}, "threads": 1}  ->  {}
    {"op": "prepare", "workload": NPZ}    ->  {"num_tokens": 812}, of all answers, when a few have been given to warm up
    {"op": "run", "batch_size": 8}        ->  {"seconds": 0.9, "cpu_seconds": 0.9, "settle_seconds": 0.0}
    {"op": "answers", "path": NPZ}        ->  {}, after writing the answers of the last run
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.peers.protocol import Convert, run_worker, settle

MAX_CONCURRENT, MAX_TOTAL_TOKENS = 32, 512
"""What engines make room for: requests at a time, and tokens of a prompt and its answer."""


WARMUP_TASKS = 2


class Task(NamedTuple):
    """One request: a prompt, and how many tokens are to follow it, end tokens or not; 0: until one ends the answer."""

    input_ids: list[int]
    num_tokens: int


Generate = Callable[[Sequence[Task], int], list[list[int]]]
"""Tasks, and the most of them that may be under way at a time, to their answers in the same order."""
LoadGenerator = Callable[[Path, Path, dict[str, Any], int], Generate]
"""Model directory, directory of converted models, options of the variant and threads to a loaded model."""


class GenerationSession:
    """One loaded model and the tasks it is timed on."""

    def __init__(self, load: LoadGenerator) -> None:
        self.load = load
        self.generate: Generate | None = None
        self.tasks: list[Task] = []
        self.answers: list[list[int]] = []

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks. Raises whatever the peer raises."""
        if request["op"] == "load":
            paths = Path(request["model"]), Path(request["converted"])
            self.generate = self.load(*paths, request["options"], request["threads"])
            return {}
        if request["op"] == "prepare":
            assert self.generate is not None, "prepare comes after load"
            self.tasks = load_tasks(Path(request["workload"]))
            self.generate(self.tasks[:WARMUP_TASKS], WARMUP_TASKS)
            return {"num_tokens": sum(task.num_tokens for task in self.tasks)}
        if request["op"] == "run":
            return self.run(request["batch_size"])
        if request["op"] == "answers":
            save_lists(Path(request["path"]), self.answers)
            return {}
        raise ValueError(f"unknown op {request['op']!r}")

    def run(self, batch_size: int) -> dict[str, float]:
        """Answer all tasks; reply when the worker's threads have gone to sleep. Raises ValueError on wrong lengths."""
        assert self.generate is not None, "run comes after load"
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        self.answers = self.generate(self.tasks, batch_size)
        seconds, cpu_seconds = time.perf_counter() - started_s, time.process_time() - started_cpu_s
        found, wanted = [len(answer) for answer in self.answers], [task.num_tokens for task in self.tasks]
        if any(count not in (length, 0) for length, count in zip(found, wanted, strict=True)):
            raise ValueError(f"answers have {found} tokens and should have {wanted}")
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "settle_seconds": settle()}


def serve(load: LoadGenerator, convert: Convert | None = None) -> None:
    """The main function of a worker."""
    run_worker(GenerationSession(load), convert)


def split(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Groups of at most `size`, as even as can be: 33 in groups of 32 are 17 and 16."""
    num_groups = -(-len(places) // size)
    for group in range(num_groups):
        yield places[group * len(places) // num_groups : (group + 1) * len(places) // num_groups]


def save_tasks(path: Path, tasks: Sequence[Task], **others: Any) -> None:
    """`others`: arrays beside them."""
    prompts = pack_lists([task.input_ids for task in tasks])
    np.savez(path, **prompts, **others, num_tokens=np.array([task.num_tokens for task in tasks], np.int64))


def load_tasks(path: Path) -> list[Task]:
    with np.load(path) as arrays:
        prompts = unpack_lists(arrays["token_ids"], arrays["lengths"])
        return [Task(prompt, int(count)) for prompt, count in zip(prompts, arrays["num_tokens"], strict=True)]


def save_lists(path: Path, lists: Sequence[Sequence[int]]) -> None:
    np.savez(path, **pack_lists(lists))


def load_lists(path: Path) -> list[list[int]]:
    with np.load(path) as arrays:
        return unpack_lists(arrays["token_ids"], arrays["lengths"])


def pack_lists(lists: Sequence[Sequence[int]]) -> dict[str, Any]:
    lengths = np.array([len(each) for each in lists], np.int64)
    return {"token_ids": np.array([token for each in lists for token in each], np.int64), "lengths": lengths}


def unpack_lists(token_ids: Any, lengths: Any) -> list[list[int]]:
    return [part.tolist() for part in np.split(token_ids, np.cumsum(lengths)[:-1])]
