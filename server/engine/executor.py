"""The one thread that owns an engine: takes packed steps from a queue and hands their outputs back."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from time import monotonic
from typing import TypeVar

from runtime.batch import Batch, Output
from runtime.engine import Engine
from server.engine.batchers.running_set import Part
from server.engine.batchers.sampling_rows import Row
from server.wire.job import Request

Result = TypeVar("Result")


def run_in_passing_thread(function: Callable[[], Result]) -> Result:
    """On a thread that ends with it: for building and warming up an engine that another thread is going to run.

    OpenMP keeps helpers for each thread that has ever computed, as long as it lives; once those are more than there are
    cores, all of them sleep at every wait, and a step of 2 ms takes 6 (docs/decisions/0014).
    """
    with ThreadPoolExecutor(1, "passing") as pool:
        return pool.submit(function).result()


@dataclass(frozen=True, slots=True)
class Step:
    """A batch and whose it is: row i answers `requests[i]`, or the tokens go to `rows`. A canary belongs to nobody."""

    batch: Batch
    requests: list[Request]
    predicted_s: float
    parts: list[Part] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    """Of generations, as in `Batch.paging.logit_rows`."""

    @property
    def owners(self) -> list[Request]:
        return self.requests or list({id(part.generation): part.generation for part in self.parts}.values())

    @property
    def is_canary(self) -> bool:
        return not self.requests and not self.parts


@dataclass(frozen=True, slots=True)
class StepResult:
    """`output` or `error`. Times are `time.monotonic()`."""

    step: Step
    started_s: float
    ended_s: float
    output: Output | None
    error: Exception | None


class DeviceThread:
    """Mutable: the queue of steps. `on_result` is called on this thread."""

    def __init__(self, engine: Engine, name: str, on_result: Callable[[StepResult], None]) -> None:
        self.engine = engine
        self.on_result = on_result
        self.steps: SimpleQueue[Step | None] = SimpleQueue()
        self.thread = threading.Thread(target=self.work, name=name, daemon=True)

    def start(self) -> None:
        self.thread.start()

    def submit(self, step: Step) -> None:
        self.steps.put(step)

    def stop(self) -> None:
        """Finish what was submitted, then end."""
        self.steps.put(None)
        self.thread.join()

    def work(self) -> None:
        while (step := self.steps.get()) is not None:
            started_s = monotonic()
            output: Output | None = None
            error: Exception | None = None
            try:
                output = self.engine.run(step.batch)
            except Exception as failure:  # whatever it was, the calls of this step must hear of it
                error = failure
            self.on_result(StepResult(step, started_s, monotonic(), output, error))
