"""Decides whether a call may enter, before any work is spent on it. Counts; knows no text and no engine.

Several HTTP processes share one count per model through a small file: one slot of (inputs, tokens) per worker, each
written by its owner alone. Check-then-add holds `flock` on the file, which the kernel releases if the holder dies; the
supervisor zeroes the slot of a dead worker.
"""

import fcntl
import mmap
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from types import TracebackType

from server.errors import Overloaded

SLOT_BYTES = 16
UNMEASURED_RETRY_S = 1.0
"""Until the first step nothing is known of the engine's speed."""
FIRST_CHARS_PER_TOKEN = 4.0
FIRST_GENERATED_TOKENS = 256.0
LEARNING_RATE = 0.05
"""Weight of the newest call in what is learned: some dozens of calls are remembered."""


class Ticket:
    """A call's place. A context manager, so that no exception and no cancellation can keep it."""

    __slots__ = ("_admission", "_num_inputs", "_num_tokens", "_tokens_per_s")

    def __init__(self, admission: "Admission", num_inputs: int, num_tokens: int, tokens_per_s: float) -> None:
        self._admission = admission
        self._num_inputs = num_inputs
        self._num_tokens = num_tokens
        self._tokens_per_s = tokens_per_s

    def correct(self, num_inputs: int, num_tokens: int) -> None:
        """Replace the estimates by the true numbers: a text may have become several windows. Raises Overloaded where
        there are no places for them; then the call keeps those that it had."""
        added = (num_inputs - self._num_inputs, num_tokens - self._num_tokens)
        if added[0] > 0:
            self._admission.extend(self._num_inputs, *added, tokens_per_s=self._tokens_per_s)
        else:
            self._admission.add(*added)
        self._num_inputs, self._num_tokens = num_inputs, num_tokens

    def release(self) -> None:
        """Once; no effect after that."""
        self._admission.add(-self._num_inputs, -self._num_tokens)
        self._num_inputs = self._num_tokens = 0

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class TokenEstimator:
    """Guesses tokens from characters with a ratio learned from the traffic: English has 4, Chinese 1.

    And the length of answers: chats mostly allow as much as the context holds, and take a few hundred tokens of it.
    """

    def __init__(self) -> None:
        self.chars_per_token = FIRST_CHARS_PER_TOKEN
        self.generated_tokens = FIRST_GENERATED_TOKENS

    def estimate(self, num_chars: int, *, num_texts: int, max_input_tokens: int) -> int:
        """At least a token per text, at most what the model takes of each."""
        return min(int(num_chars / self.chars_per_token) + num_texts, num_texts * max_input_tokens)

    def learn(self, num_chars: int, num_tokens: int) -> None:
        """One call's true numbers. Extreme ratios (a megabyte of blanks) are held to what text can have."""
        ratio = min(max(num_chars / max(num_tokens, 1), 0.25), 16.0)
        self.chars_per_token += LEARNING_RATE * (ratio - self.chars_per_token)

    def estimate_generated(self, max_tokens: int) -> int:
        """Tokens of one answer, which may be so long and not longer."""
        return min(max_tokens, round(2 * self.generated_tokens))

    def learn_generated(self, num_tokens: float) -> None:
        """An answer's true length; the mean over a call's answers."""
        self.generated_tokens += LEARNING_RATE * (num_tokens - self.generated_tokens)


class Admission:
    """One model's count of inputs and tokens admitted and not yet answered, over all HTTP workers.

    Without a file it counts for this process alone. Used from one thread per process.
    """

    def __init__(
        self,
        max_inputs: int,
        *,
        path: Path | None = None,
        worker: int = 0,
        num_workers: int = 1,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.max_inputs = max_inputs
        self.estimator = TokenEstimator()
        self._worker = worker
        self._num_workers = num_workers
        self._clock = clock
        self._fd = -1 if path is None else open_slots(path, num_workers)
        size = num_workers * SLOT_BYTES
        self._memory = mmap.mmap(self._fd, size) if path is not None else None
        self._slots = memoryview(bytearray(size) if self._memory is None else self._memory).cast("q")
        self._slots[2 * worker] = self._slots[2 * worker + 1] = 0

    @property
    def num_inputs(self) -> int:
        return sum(self._slots[0::2]) if self._num_workers > 1 else self._slots[0]

    @property
    def own_inputs(self) -> int:
        """Of this worker alone."""
        return self._slots[2 * self._worker]

    @property
    def num_tokens(self) -> int:
        return sum(self._slots[1::2]) if self._num_workers > 1 else self._slots[1]

    def admit(self, num_inputs: int, num_tokens: int, *, deadline_s: float, tokens_per_s: float) -> Ticket:
        """Take a place or raise Overloaded. `num_tokens` may be an estimate; `tokens_per_s` 0 means not known yet."""
        with self._lock():
            inputs_before, tokens_before = self.num_inputs, self.num_tokens
            drain_s = predict_drain(tokens_before, tokens_per_s)
            if inputs_before + num_inputs > self.max_inputs:
                raise Overloaded(
                    f"the queue is full: {inputs_before} of {self.max_inputs} inputs are waiting and this request has "
                    f"{num_inputs}; try again later",
                    retry_after_s=plan_retry(drain_s),
                )
            # Never refused on an empty queue: a rate measured too low could otherwise refuse everything for ever.
            if drain_s is not None and inputs_before > 0 and self._clock() + drain_s > deadline_s:
                raise Overloaded(
                    f"the deadline is out of reach: {tokens_before} tokens are waiting, about {drain_s * 1000:.0f} ms; "
                    "try again later or allow more in x-request-timeout-ms",
                    retry_after_s=plan_retry(drain_s),
                    code="deadline_unreachable",
                )
            self.add(num_inputs, num_tokens)
        return Ticket(self, num_inputs, num_tokens, tokens_per_s)

    def extend(self, num_inputs: int, num_added: int, num_tokens: int, *, tokens_per_s: float) -> None:
        """Give a call of so many inputs places for more, or raise Overloaded."""
        with self._lock():
            num_others = self.num_inputs - num_inputs
            if num_others + num_inputs + num_added > self.max_inputs:
                raise Overloaded(
                    f"the queue is full: {num_others} of {self.max_inputs} inputs are waiting and the texts of this "
                    f"request make {num_inputs + num_added} windows, each of them an input; try again later, or set "
                    "a smaller stride",
                    retry_after_s=plan_retry(predict_drain(self.num_tokens, tokens_per_s)),
                )
            self.add(num_added, num_tokens)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Nobody else takes places meanwhile."""
        if self._fd < 0:
            yield
            return
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def add(self, num_inputs: int, num_tokens: int) -> None:
        """Change this worker's slot. Needs no lock: nobody else writes it, and readers see old or new."""
        self._slots[2 * self._worker] += num_inputs
        self._slots[2 * self._worker + 1] += num_tokens

    def close(self) -> None:
        """Zero this worker's slot and let go of the file; tickets released later count for nobody."""
        shared = self._slots
        shared[2 * self._worker] = shared[2 * self._worker + 1] = 0
        self._slots = memoryview(bytearray(self._num_workers * SLOT_BYTES)).cast("q")
        shared.release()
        if self._memory is not None:
            self._memory.close()
            os.close(self._fd)
            self._memory, self._fd = None, -1


def predict_drain(num_tokens: int, tokens_per_s: float) -> float | None:
    """How long the queue takes; None: not known yet."""
    return num_tokens / tokens_per_s if tokens_per_s > 0 else None


def plan_retry(drain_s: float | None) -> float:
    """Places free up evenly while the queue drains; spread over the second half, clients do not come back at once."""
    return UNMEASURED_RETRY_S if drain_s is None else drain_s * random.uniform(0.5, 1.0)


def open_slots(path: Path, num_workers: int) -> int:
    """Open the shared file, made with its full size if need be; what is in it stays."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        if os.fstat(fd).st_size < num_workers * SLOT_BYTES:
            os.ftruncate(fd, num_workers * SLOT_BYTES)
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)
    return fd


def clear_slot(path: Path, worker: int) -> None:
    """For the supervisor, once a worker has died: what it had admitted will not be answered."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.pwrite(fd, bytes(SLOT_BYTES), worker * SLOT_BYTES)
    finally:
        os.close(fd)
