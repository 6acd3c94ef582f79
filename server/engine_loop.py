"""Keeps one engine busy: queues calls, forms the next step while the last one runs, and hands answers out.

Scheduling and running belong in one loop, and a busy HTTP event loop must never starve the device; so this loop lives
in the engine's own process (`engine_process`), or in the HTTP process where the configuration says `inline`. It is an
EngineClient itself: what crosses the process border is exactly its interface.
"""

import asyncio
import itertools
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic

import numpy as np
import numpy.typing as npt

from runtime.engine import Engine, EngineError
from server.cost_model import CostModel, StepCost
from server.device_thread import DeviceThread, Step, StepResult
from server.metrics import Metrics
from server.packing import pack, sort_by_length
from server.request import (
    Answer,
    DeadlineExceeded,
    EngineFailure,
    EngineStatus,
    EngineUnavailable,
    Request,
    TokenSequence,
)
from server.scheduler import Scheduler, SchedulerLimits

logger = logging.getLogger("padless.engine")

MAX_FAILED_CANARIES = 3
"""In a row; then the engine will not recover by itself, and its process should be started again."""
PREFETCH_LEAD_S = 0.002
"""The next step is formed this long before the running one should end: as late as is safe, so that it is as full as
can be, and early enough that the engine never waits for Python."""
OBSERVE_PERIOD_S = 0.5
CANARY = TokenSequence(np.zeros(1, np.int32))


@dataclass(slots=True)
class Call:
    """One client call under way. Mutable: rows are filled in as steps end, in whatever order."""

    future: asyncio.Future[Answer]
    requests: list[Request]
    values: npt.NDArray[np.float32]
    num_missing: int
    queue_s: float = 0.0
    engine_s: float = 0.0


@dataclass(slots=True)
class Running:
    """Steps given to the device and not yet back, oldest first, and when the oldest should end."""

    steps: list[Step] = field(default_factory=list)
    predicted_end_s: float = 0.0


class EngineLoop:
    """Mutable: the calls under way, the scheduler's queue, the steps on the device, and the last success."""

    def __init__(
        self,
        engine: Engine,
        limits: SchedulerLimits,
        cost_model: CostModel,
        metrics: Metrics,
        *,
        model: str,
        replica: int = 0,
        canary_interval_s: float = 5.0,
    ) -> None:
        self.engine = engine
        self.scheduler = Scheduler(limits, cost_model)
        self.metrics = metrics
        self.model, self.replica = model, replica
        self.canary_interval_s = canary_interval_s
        self.calls: dict[int, Call] = {}
        self.running = Running()
        self.ids = itertools.count()
        self.last_success_s = 0.0
        self.last_canary_s = 0.0
        self.num_failed_canaries = 0
        self.crash: BaseException | None = None
        self.crashed = asyncio.Event()
        self.changed = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []
        self.device = DeviceThread(engine, f"engine-{model}-{replica}", self.deliver)

    async def start(self) -> None:
        """Start the device thread and prove with a canary step that the engine computes."""
        self.loop = asyncio.get_running_loop()
        self.device.start()
        self.tasks = [asyncio.create_task(self.feed()), asyncio.create_task(self.watch())]
        for task in self.tasks:
            task.add_done_callback(self.note_end)
        self.submit([])

    def note_end(self, task: asyncio.Task[None]) -> None:
        """A task of ours ended by an error: nothing would be fed any more. Everybody is told, and nothing hangs."""
        if task.cancelled() or task.exception() is None:
            return
        self.crash = task.exception()
        logger.error("the loop of model %s crashed", self.model, exc_info=self.crash)
        for call in list(self.calls.values()):
            self.fail(call, EngineUnavailable(f"the engine's loop crashed: {self.crash}"))
        self.crashed.set()

    async def close(self) -> None:
        """Stop. Calls still under way fail; whoever drains lets them finish first."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.to_thread(self.device.stop)
        for call in list(self.calls.values()):
            self.fail(call, EngineUnavailable("the engine was stopped"))
        self.engine.close()

    def status(self) -> tuple[EngineStatus, ...]:
        age_s = monotonic() - self.last_success_s
        is_ready = self.crash is None and self.last_success_s > 0 and age_s < 3 * self.canary_interval_s
        reason = "ready" if is_ready else f"no forward pass has succeeded for {age_s:.0f} s"
        limits = self.scheduler.limits
        return (
            EngineStatus(
                is_ready=is_ready,
                reason="starting" if self.last_success_s == 0 else reason,
                queued_tokens=self.scheduler.queue.num_tokens,
                tokens_per_s=self.scheduler.cost_model.tokens_per_s(limits.max_batch_tokens),
                info=self.engine.info,
            ),
        )

    async def run(self, sequences: list[TokenSequence], deadline_s: float) -> Answer:
        """See EngineClient."""
        if self.crash is not None:
            raise EngineUnavailable(f"the engine's loop crashed: {self.crash}")
        too_long = max(sequence.num_tokens for sequence in sequences)
        if too_long > self.scheduler.limits.max_batch_tokens:
            raise EngineFailure(f"an input of {too_long} tokens is over the budget of a step. This is a bug.")
        call_id, now_s = next(self.ids), monotonic()
        requests = [
            Request(index, call_id, sequence, deadline_s=deadline_s, arrival_s=now_s)
            for index, sequence in enumerate(sequences)
        ]
        values = np.empty((len(requests), self.engine.info.output_dim), np.float32)
        call = Call(asyncio.get_running_loop().create_future(), requests, values, len(requests))
        self.calls[call_id] = call
        self.scheduler.add(requests)
        self.changed.set()
        try:
            return await call.future
        finally:
            self.calls.pop(call_id, None)
            # After a failure or a cancellation: what is still queued is dropped when the scheduler meets it.
            self.scheduler.queue.cancel(requests)

    async def feed(self) -> None:
        """Form a step whenever the device can take one: one runs, one is ready behind it."""
        while True:
            self.changed.clear()
            pause_s = self.pause_s(monotonic())
            if pause_s is not None and pause_s <= 0:
                self.form_step()
                # Let callbacks in: new requests should be in the queue before the next step is formed.
                await asyncio.sleep(0)
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), pause_s)

    def pause_s(self, now_s: float) -> float | None:
        """How long before the next step should be formed; None: until something changes."""
        num_running = len(self.running.steps)
        if num_running > 1:
            return None
        wait_s = self.scheduler.wait_s(now_s)
        if wait_s is None or num_running == 0:
            return wait_s
        return max(wait_s, self.running.predicted_end_s - PREFETCH_LEAD_S - now_s)

    def form_step(self) -> None:
        choice = self.scheduler.next_step(monotonic())
        for request in choice.expired:
            self.fail_call_of(request, DeadlineExceeded("the deadline passed in the queue"))
        if choice.requests:
            self.submit(choice.requests)

    def submit(self, requests: list[Request]) -> None:
        """Pack and hand to the device; no requests: a canary."""
        sequences = [request.sequence for request in requests] or [CANARY]
        order = sort_by_length(sequences)
        ordered = [sequences[index] for index in order]
        predicted_s = self.scheduler.cost_model.predict(cost_of(ordered))
        now_s = monotonic()
        step = Step(pack(ordered), [requests[index] for index in order] if requests else [], predicted_s)
        self.running.steps.append(step)
        if len(self.running.steps) == 1:
            self.running.predicted_end_s = now_s + predicted_s
        self.device.submit(step)

    def deliver(self, result: StepResult) -> None:
        """On the device thread: pass the result to the loop. The loop may be gone when the process ends."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.finish_step, result)

    def finish_step(self, result: StepResult) -> None:
        running = self.running
        running.steps.pop(0)
        if running.steps:
            running.predicted_end_s = monotonic() + running.steps[0].predicted_s
        self.changed.set()
        try:
            self.hand_out(result)
        except Exception as error:  # a bug of ours; the calls of this step must hear of it
            logger.exception("the result of a step of model %s could not be handed out", self.model)
            for request in result.step.requests:
                self.fail_call_of(request, EngineFailure(f"{type(error).__name__}: {error}"))

    def hand_out(self, result: StepResult) -> None:
        is_good = result.output is not None and bool(np.isfinite(result.output.values).all())
        if is_good:
            self.last_success_s = result.ended_s
        if is_good or not result.step.requests:
            self.num_failed_canaries = 0 if is_good else self.num_failed_canaries + 1
        if result.output is None:
            self.retry_or_fail(result.step, result.error or EngineError("the engine gave no reason"))
            return
        self.observe(result)
        for request, row in zip(result.step.requests, result.output.values, strict=False):
            self.answer(request, row, result)

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

    def retry_or_fail(self, step: Step, error: Exception) -> None:
        """Halve a failed step until the culprit is alone: the others of its batch must not fail with it."""
        if not isinstance(error, EngineError):
            logger.error("a step of model %s failed", self.model, exc_info=error)
        now_s = monotonic()
        late = [request for request in step.requests if request.deadline_s <= now_s]
        for request in late:
            self.fail_call_of(request, DeadlineExceeded("the deadline passed while a failed step was tried again"))
        waiting = [request for request in step.requests if not request.is_cancelled and request not in late]
        if len(step.requests) > 1:
            middle = len(waiting) // 2
            for half in filter(None, (waiting[:middle], waiting[middle:])):
                self.submit(half)
            return
        for request in waiting:
            self.fail_call_of(request, EngineFailure(str(error)))

    def fail_call_of(self, request: Request, error: Exception) -> None:
        if request.call_id in self.calls:
            self.fail(self.calls[request.call_id], error)

    def fail(self, call: Call, error: Exception) -> None:
        if not call.future.done():
            call.future.set_exception(error)

    def observe(self, result: StepResult) -> None:
        batch, step = result.step.batch, result.step
        actual_s = result.ended_s - result.started_s
        self.scheduler.cost_model.observe(cost_of_batch(batch.seqlens), batch.num_seqs, actual_s)
        if not step.requests:
            return
        self.metrics.observe_step(
            self.model,
            self.replica,
            num_tokens=batch.num_tokens,
            num_seqs=batch.num_seqs,
            max_seqlen=batch.max_seqlen,
            predicted_s=step.predicted_s,
            actual_s=actual_s,
            batch_wait_s=result.started_s - min(request.arrival_s for request in step.requests),
        )

    async def watch(self) -> None:
        """Publish gauges, and when nothing has run for a while, run a canary and let the engine tidy up.

        Raises EngineError, which ends the process, where canaries go on failing.
        """
        while True:
            memory, queue = self.engine.memory(), self.scheduler.queue
            self.metrics.observe_engine(self.model, self.replica, memory, queue.num_tokens)
            await asyncio.sleep(OBSERVE_PERIOD_S)
            if self.num_failed_canaries >= MAX_FAILED_CANARIES:
                raise EngineError(f"{self.num_failed_canaries} canaries in a row have failed")
            is_idle = not self.running.steps and not queue.heap
            if is_idle and monotonic() - max(self.last_success_s, self.last_canary_s) >= self.canary_interval_s:
                self.last_canary_s = monotonic()
                self.engine.trim()
                self.submit([])


def cost_of(sequences: list[TokenSequence]) -> StepCost:
    return cost_of_batch(np.array([sequence.num_tokens for sequence in sequences]))


def cost_of_batch(seqlens: npt.NDArray[np.int32] | npt.NDArray[np.int64]) -> StepCost:
    lengths = seqlens.astype(np.int64)
    return StepCost(int(lengths.sum()), int(np.square(lengths).sum()))
