"""Calls whose inputs are computed in one step each: they go in as sequences and come out as rows."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

import numpy as np
import numpy.typing as npt

from runtime.batch import ArraySpec
from runtime.engine import EngineError
from server.engine.batchers.packing import pack, sort_by_length
from server.engine.batchers.scheduler import Choice, Scheduler
from server.engine.cost_model import CostModel, StepCost
from server.engine.executor import Step, StepResult
from server.wire.job import Answer, DeadlineExceeded, EngineFailure, Request, TokenSequence

logger = logging.getLogger("padless.engine")


@dataclass(slots=True)
class Call:
    """One client call under way. Mutable: rows are filled in as steps end, in whatever order."""

    future: asyncio.Future[Answer]
    requests: list[Request]
    values: npt.NDArray[np.float32]
    num_missing: int
    queue_s: float = 0.0
    engine_s: float = 0.0


class Encoding:
    """Mutable: the calls under way. Belongs to the event loop's thread."""

    can_prefetch = True
    """The next step does not depend on what the running one gives."""

    def __init__(self, scheduler: Scheduler, output: ArraySpec, wake: Callable[[], None]) -> None:
        self.scheduler = scheduler
        self.output_name, self.output_dim = output.name, int(output.dims[-1])
        self.wake = wake
        self.calls: dict[int, Call] = {}
        self.ids = itertools.count()

    async def run(self, sequences: list[TokenSequence], deadline_s: float) -> Answer:
        """See EngineClient."""
        too_long = max(sequence.num_tokens for sequence in sequences)
        if too_long > self.scheduler.limits.max_batch_tokens:
            raise EngineFailure(f"an input of {too_long} tokens is over the budget of a step. This is a bug.")
        call_id, now_s = next(self.ids), monotonic()
        requests = [
            Request(index, call_id, sequence, deadline_s=deadline_s, arrival_s=now_s)
            for index, sequence in enumerate(sequences)
        ]
        values = np.empty((len(requests), self.output_dim), np.float32)
        call = Call(asyncio.get_running_loop().create_future(), requests, values, len(requests))
        self.calls[call_id] = call
        self.scheduler.add(requests)
        self.wake()
        try:
            return await call.future
        finally:
            self.calls.pop(call_id, None)
            # After a failure or a cancellation: what is still queued is dropped when the scheduler meets it.
            self.scheduler.queue.cancel(requests)

    def form(self, choice: Choice) -> Step | None:
        return self.pack_step(choice.requests) if choice.requests else None

    def form_canary(self, sequence: TokenSequence) -> Step:
        return Step(pack([sequence]), [], self.cost_model.predict(cost_of_lengths([1])))

    def pack_step(self, requests: list[Request]) -> Step:
        order = sort_by_length([request.sequence for request in requests])
        ordered = [requests[index] for index in order]
        predicted_s = self.cost_model.predict(cost_of_lengths([request.num_tokens for request in ordered]))
        return Step(pack([request.sequence for request in ordered]), ordered, predicted_s)

    @property
    def cost_model(self) -> CostModel:
        return self.scheduler.cost_model

    def measure_cost(self, step: Step) -> StepCost:
        return cost_of_lengths(step.batch.seqlens)

    def is_good(self, result: StepResult) -> bool:
        """Whether the model computed numbers."""
        return result.output is not None and bool(np.isfinite(result.output.arrays[self.output_name]).all())

    def hand_out(self, result: StepResult) -> list[Step]:
        """Give the rows to their calls. Returns what has to be tried again."""
        if result.output is None:
            return self.retry_or_fail(result.step, result.error or EngineError("the engine gave no reason"))
        for request, row in zip(result.step.requests, result.output.arrays[self.output_name], strict=False):
            self.answer(request, row, result)
        return []

    def answer(self, request: Request, row: npt.NDArray[np.float32], result: StepResult) -> None:
        call = self.calls.get(request.call_id)
        if call is None:
            return
        call.values[request.request_id] = row
        call.queue_s = max(call.queue_s, result.started_s - request.arrival_s)
        call.engine_s = max(call.engine_s, result.ended_s - result.started_s)
        call.num_missing -= 1
        if call.num_missing == 0 and not call.future.done():
            call.future.set_result(Answer(call.values, call.queue_s, call.engine_s))

    def retry_or_fail(self, step: Step, error: Exception) -> list[Step]:
        """Halve a failed step until the culprit is alone: the others of its batch must not fail with it."""
        now_s = monotonic()
        late = [request for request in step.requests if request.deadline_s <= now_s]
        for request in late:
            self.fail(request, DeadlineExceeded("the deadline passed while a failed step was tried again"))
        waiting = [request for request in step.requests if not request.is_cancelled and request not in late]
        if len(step.requests) > 1:
            middle = len(waiting) // 2
            return [self.pack_step(half) for half in (waiting[:middle], waiting[middle:]) if half]
        for request in waiting:
            self.fail(request, EngineFailure(str(error)))
        return []

    def fail(self, request: Request, error: Exception) -> None:
        """The whole call of this request."""
        call = self.calls.get(request.call_id)
        if call is not None and not call.future.done():
            call.future.set_exception(error)

    def forget_cancelled(self, request: Request) -> None:
        """`run` has forgotten the call already."""

    def fail_all(self, error: Exception) -> None:
        for call in list(self.calls.values()):
            if not call.future.done():
                call.future.set_exception(error)


def cost_of_lengths(seqlens: list[int] | npt.NDArray[np.int32]) -> StepCost:
    lengths = np.asarray(seqlens, np.int64)
    return StepCost(int(lengths.sum()), int(np.square(lengths).sum()))
