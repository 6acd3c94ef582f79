"""What the engine loop asks of whoever decides what a step computes. Pure.

A batcher owns the policy of one kind of work: its queue, its order, its budget, and what becomes of a step's result.
The loop owns the clock, the device and its health, and knows no kind of work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from runtime.batch import Batch, Output
from server.engine.cost_model import StepCost
from server.metrics import Metrics
from server.wire.job import Job, TokenSequence
from server.wire.result_stream import ResultStream

CANARY = TokenSequence(np.zeros(1, np.int32))
"""What an engine computes to prove itself."""


@dataclass(frozen=True, slots=True)
class StepLimits:
    max_batch_tokens: int
    max_batch_requests: int
    max_wait_s: float
    """How long a free engine waits for a fuller step."""
    max_batch_logits: int = 0
    """Decoders: the most rows of logits of a step."""


@dataclass(frozen=True, slots=True)
class Step:
    """A batch for the device; batchers add whose it is. `oldest_arrival_s` None: a canary, which is nobody's."""

    batch: Batch
    cost: StepCost
    predicted_s: float
    oldest_arrival_s: float | None = None

    @property
    def is_canary(self) -> bool:
        return self.oldest_arrival_s is None

    def follow(self, runs: Sequence["Run"], elapsed_s: float) -> tuple[Sequence[int], Batch] | None:
        """What the device computes behind this step without asking anybody: which of its sequences, and their batch.
        `runs`: what is computed, of which the first is the step itself, in `elapsed_s`. None: nothing."""
        return None


class Run(NamedTuple):
    """A batch of a step. `places`: of its sequences, among those of the step."""

    places: Sequence[int]
    batch: Batch
    output: Output


AnyStep = TypeVar("AnyStep", bound=Step)


@dataclass(frozen=True, slots=True)
class StepResult(Generic[AnyStep]):
    """`output` or `error`. Times are `time.monotonic()`. `following`: what was computed behind the step."""

    step: AnyStep
    started_s: float
    ended_s: float
    output: Output | None
    error: Exception | None
    following: tuple[Run, ...] = ()

    @property
    def batches(self) -> list[Batch]:
        return [self.step.batch, *(run.batch for run in self.following)]


class Batcher(Protocol[AnyStep]):
    """Belongs to the event loop's thread. Results and errors go into the jobs' streams."""

    @property
    def max_steps_under_way(self) -> int:
        """1 where the next step begins with what the last one gives; more where it does not depend on it."""

    @property
    def num_queued_tokens(self) -> int: ...

    def tokens_per_s(self) -> float:
        """The measured rate at which what waits here is worked off; 0 where nothing was measured yet."""

    def add(self, job: Job, stream: ResultStream, now_s: float) -> None:
        """Queue a job. Raises Unservable where it could never run."""

    def cancel(self, stream: ResultStream, rows: Sequence[int]) -> None:
        """Nobody waits for these rows any more; no rows: for any."""

    def wait_s(self, now_s: float) -> float | None:
        """How long a free engine should wait before it asks for a step: 0: not at all; None: there is nothing to do."""

    def form(self, now_s: float) -> AnyStep | None:
        """The next step. Whoever is too late is told so on the way."""

    def form_canary(self) -> AnyStep:
        """The smallest step there is, which disturbs nobody."""

    def settle(self, result: StepResult[AnyStep], now_s: float) -> list[AnyStep]:
        """Take in what was computed. Returns what has to be tried again."""

    def deliver(self) -> bool:
        """Hand out what was settled and has not been: the next step computes meanwhile. Whether there is more than one
        turn of the loop should hand out."""

    def observe(self, result: StepResult[AnyStep]) -> None:
        """Learn what steps take."""

    def fail_step(self, step: AnyStep, error: Exception) -> None:
        """Tell everybody whose step it is."""

    def fail_all(self, error: Exception) -> None: ...

    def publish(self, metrics: Metrics) -> None:
        """How things stand, for the gauges."""

    def check_books(self) -> None:
        """That nothing is lost. Called when idle. Raises AssertionError."""
