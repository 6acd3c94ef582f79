"""The one thread that owns an engine: takes packed steps from a queue and hands their outputs back."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from time import monotonic

from runtime.batch import Batch, Output
from runtime.engine import Engine
from server.request import Request


@dataclass(frozen=True, slots=True)
class Step:
    """A batch and whose it is: row i answers `requests[i]`. A canary belongs to nobody."""

    batch: Batch
    requests: list[Request]
    predicted_s: float


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
