"""The worker's side of the conversation with `bench.peers`, and what all workers share: padding and pooling.

Workers run in their peer's environment, by path, so this file needs nothing but numpy. One JSON object per line comes
in on standard input, one goes out on standard output; whatever a library prints goes to standard error.

    {"op": "load", "model": DIR, "converted": DIR, "options": {...}, "threads": 1}  ->  {}
    {"op": "prepare", "workload": NPZ}                                              ->  {"num_tokens": 3281}
    {"op": "run", "batch_size": 8}                    ->  {"seconds": 0.9, "cpu_seconds": 0.9, "settle_seconds": 0.0}
    {"op": "embeddings", "path": NPY}                 ->  {}, after writing the rows of the last run: in the
                                                          caller's order; those of tokens, shortest sequence first

An answer {"error": TEXT} means that the request failed; the worker goes on.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import numpy.typing as npt

Sequences = Sequence[npt.NDArray[np.int32]]
"""Token ids, one array per sequence."""
Rows = npt.NDArray[np.float32]
"""One row per sequence, such as its normalised embedding; or one per token."""
Embed = Callable[[Sequence[Sequences]], Sequence[Rows]]
"""Batches to the rows of each batch. It pads or packs the batches itself, within the time that is measured."""
Load = Callable[[Path, Path, dict[str, Any], int], Embed]
"""Model directory, directory of converted models, options of the variant and threads to a loaded model."""
Convert = Callable[[Path, Path], None]
"""Model directory to an empty directory, which it fills."""

IDLE_SHARE = 0.05
"""A worker counts as idle when its threads together take less of a core than this."""
SETTLE_STEP_S = 0.02
MAX_SETTLE_S = 2.0


class Session:
    """One loaded model and the workload it is timed on."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.embed: Embed | None = None
        self.sequences: list[npt.NDArray[np.int32]] = []
        self.order: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self.rows: Rows | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks. Raises whatever the peer raises."""
        if request["op"] == "load":
            paths = Path(request["model"]), Path(request["converted"])
            self.embed = self.load(*paths, request["options"], request["threads"])
            return {}
        if request["op"] == "prepare":
            self.sequences = load_workload(Path(request["workload"]))
            self.order = np.argsort([len(sequence) for sequence in self.sequences], kind="stable")
            return {"num_tokens": sum(len(sequence) for sequence in self.sequences)}
        if request["op"] == "run":
            return self.run(request["batch_size"])
        if request["op"] == "embeddings":
            np.save(request["path"], self.rows)
            return {}
        raise ValueError(f"unknown op {request['op']!r}")

    def run(self, batch_size: int) -> dict[str, float]:
        """Embed all sequences, sorted by length; answer when the worker's threads have gone to sleep."""
        assert self.embed is not None, "run comes after load"
        ordered = [self.sequences[index] for index in self.order]
        batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        rows = self.embed(batches)
        seconds, cpu_seconds = time.perf_counter() - started_s, time.process_time() - started_cpu_s
        self.rows = np.concatenate(rows)
        if len(self.rows) == len(ordered):
            self.rows[self.order] = self.rows.copy()
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "settle_seconds": settle()}


def settle() -> float:
    """Wait until no thread of this process spins any more, so that the next worker has the machine; seconds waited."""
    started_s = time.perf_counter()
    while time.perf_counter() - started_s < MAX_SETTLE_S:
        before_s, before_cpu_s = time.perf_counter(), time.process_time()
        time.sleep(SETTLE_STEP_S)
        if time.process_time() - before_cpu_s < IDLE_SHARE * (time.perf_counter() - before_s):
            break
    return time.perf_counter() - started_s


def save_workload(path: Path, sequences: Sequences) -> None:
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    np.savez(path, input_ids=np.concatenate(sequences).astype(np.int32), lengths=lengths)


def load_workload(path: Path) -> list[npt.NDArray[np.int32]]:
    with np.load(path) as arrays:
        return np.split(arrays["input_ids"], np.cumsum(arrays["lengths"])[:-1])


def pad(batch: Sequences) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Token ids and mask, both `[sequences, longest]`."""
    longest = max(len(sequence) for sequence in batch)
    input_ids = np.zeros((len(batch), longest), np.int64)
    mask = np.zeros_like(input_ids)
    for row, sequence in enumerate(batch):
        input_ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return input_ids, mask


def drop_padding(rows: Rows, mask: npt.NDArray[np.int64]) -> Rows:
    """Of rows of tokens, `[sequences, longest, width]`, those that are there, `[tokens, width]`; others as they are."""
    return rows[mask.astype(bool)] if rows.ndim == 3 else rows


def pool(hidden_states: npt.NDArray[np.float32], mask: npt.NDArray[np.int64]) -> Rows:
    """Mean over the tokens that are there, then length 1; for peers whose model ends at the last layer."""
    weights = mask.astype(np.float32)
    means = (weights[:, None, :] @ hidden_states)[:, 0, :]
    return means / np.linalg.norm(means, axis=1, keepdims=True)


class Answers(Protocol):
    """What a worker's session is to the conversation."""

    def answer(self, request: dict[str, Any]) -> dict[str, Any]: ...


def serve(load: Load, convert: Convert | None = None) -> None:
    """The main function of a worker that embeds."""
    run_worker(Session(load), convert)


def run_worker(session: Answers, convert: Convert | None) -> None:
    """`convert MODEL OUT` fills a directory once; without arguments the session answers."""
    if sys.argv[1:2] == ["convert"]:
        assert convert is not None, "this peer converts nothing"
        convert(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as replies:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        answer_all(session, sys.stdin, replies)


def answer_all(session: Answers, requests: TextIO, replies: TextIO) -> None:
    for line in requests:
        try:
            reply = session.answer(json.loads(line))
        except Exception as error:  # a peer may fail in any way, and its row of the table says how
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)
