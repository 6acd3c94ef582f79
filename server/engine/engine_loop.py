"""Keeps one engine busy: has the next step formed as soon as it can be, and has the last one's results handed out.

Scheduling and running belong in one loop, and a busy HTTP event loop must never starve the device; so this loop lives
in the engine's own process (`processes.engine_process`), or in the HTTP process where the configuration says `inline`.
It is an EngineClient itself: what crosses the process border is exactly its interface. It knows the clock, the device
and its health; what a step is made of, and what becomes of its result, is the batcher's business.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Generic

from runtime.engine import DeviceLost, EngineError
from server.engine.batchers.batcher import AnyStep, Batcher, StepResult
from server.engine.executor import Executor
from server.engine.health import Health
from server.errors import EngineFailure, EngineUnavailable
from server.metrics import Metrics
from server.wire.job import EngineStatus, Job
from server.wire.result_stream import ResultStream

logger = logging.getLogger("padless.engine")

PREFETCH_LEAD_S = 0.002
"""The next step is formed this long before the running one should end: as late as is safe, so that it is as full as
can be, and early enough that the engine never waits for Python."""
OBSERVE_PERIOD_S = 0.5
WATCH_PERIOD_S = 0.1
PAUSE_S = 1.0
"""Who wakes up so much too late has not been running: the process was stopped, or the machine was asleep."""


class EngineLoop(Generic[AnyStep]):
    """`make_batcher` gets `wake`, for work that is ready later than its job. Mutable: the steps on the device, the
    oldest first, and since when it is that; its health."""

    def __init__(
        self,
        make_batcher: Callable[[Callable[[], None]], Batcher[AnyStep]],
        executor: Executor[AnyStep],
        metrics: Metrics,
        *,
        model: str,
        replica: int = 0,
        canary_interval_s: float = 5.0,
    ) -> None:
        self.batcher = make_batcher(self.wake)
        self.executor = executor
        self.metrics = metrics
        self.model, self.replica = model, replica
        self.health = Health(canary_interval_s)
        self.under_way: list[AnyStep] = []
        self.oldest_since_s = 0.0
        self.last_observed_s = 0.0
        self.crash: BaseException | None = None
        self.crashed = asyncio.Event()
        self.changed = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    def wake(self) -> None:
        """Somebody waits for something new."""
        self.executor.interrupt()
        self.changed.set()

    async def start(self) -> None:
        """Start the device and prove with a canary step that the engine computes."""
        self.loop = asyncio.get_running_loop()
        self.executor.start(self.deliver)
        self.tasks = [asyncio.create_task(self.feed()), asyncio.create_task(self.watch())]
        for task in self.tasks:
            task.add_done_callback(self.note_end)
        self.run_canary(monotonic())

    def note_end(self, task: asyncio.Task[None]) -> None:
        """A task of ours ended by an error: nothing would be fed any more."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.give_up(error)

    def give_up(self, error: BaseException) -> None:
        """Nothing is computed here any more. Everybody is told, and nothing hangs."""
        self.crash = error
        logger.error("the loop of model %s crashed", self.model, exc_info=error)
        for task in self.tasks:
            task.cancel()
        self.batcher.fail_all(EngineUnavailable(self.explain_crash()))
        self.crashed.set()

    def explain_crash(self) -> str:
        """For clients: what an engine says of itself; of a bug of ours only the log has the words."""
        return str(self.crash) if isinstance(self.crash, EngineError) else "the engine's loop crashed; the log says why"

    async def close(self) -> None:
        """Stop. Jobs still under way fail; whoever drains lets them finish first."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.to_thread(self.executor.stop)
        self.batcher.fail_all(EngineUnavailable("the engine was stopped"))

    def statuses(self) -> tuple[EngineStatus, ...]:
        reason = self.explain_crash() if self.crash is not None else self.health.explain_unready(monotonic())
        return (
            EngineStatus(
                is_ready=reason is None,
                reason=reason or "ready",
                tokens_per_s=self.batcher.tokens_per_s(),
                info=self.executor.info,
            ),
        )

    def submit(self, job: Job) -> ResultStream:
        """See EngineClient."""
        if self.crash is not None:
            raise EngineUnavailable(self.explain_crash())

        def cancel(rows: Sequence[int]) -> None:
            self.batcher.cancel(stream, rows)
            self.executor.interrupt()

        stream = ResultStream(cancel)
        self.batcher.add(job, stream, monotonic())
        self.wake()
        return stream

    async def feed(self) -> None:
        """Have a step formed whenever the device can take one, and what was computed handed out."""
        while True:
            self.changed.clear()
            has_more = self.batcher.deliver()
            pause_s = self.pause_s(monotonic())
            if pause_s is not None and pause_s <= 0:
                self.form_step()
            elif not has_more:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), pause_s)
                continue
            # Let callbacks in: new jobs should be in the queue before the next step is formed.
            await asyncio.sleep(0)

    def pause_s(self, now_s: float) -> float | None:
        """How long before the next step should be formed; None: until something changes."""
        if len(self.under_way) >= self.batcher.max_steps_under_way:
            return None
        wait_s = self.batcher.wait_s(now_s)
        if wait_s is None or not self.under_way:
            return wait_s
        return max(wait_s, self.started_s + self.under_way[0].predicted_s - PREFETCH_LEAD_S - now_s)

    def form_step(self) -> None:
        step = self.batcher.form(monotonic())
        if step is not None:
            self.run(step)
        self.batcher.deliver()  # the device is busy again

    def run_canary(self, now_s: float) -> None:
        self.health.last_canary_s = now_s
        self.run(self.batcher.form_canary())

    def run(self, step: AnyStep) -> None:
        self.under_way.append(step)
        if len(self.under_way) == 1:
            self.note_start(step)
        self.executor.submit(step)

    def note_start(self, step: AnyStep) -> None:
        self.oldest_since_s = monotonic()
        self.health.begin(self.oldest_since_s, step.predicted_s)

    @property
    def started_s(self) -> float:
        """When the oldest step began, or could at the earliest, if it waits for others to leave the device."""
        return max(self.oldest_since_s, self.executor.turn_s)

    def deliver(self, result: StepResult[AnyStep]) -> None:
        """On the executor's thread: pass the result to the loop. The loop may be gone when the process ends."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.finish_step, result)

    def finish_step(self, result: StepResult[AnyStep]) -> None:
        self.under_way.pop(0)
        self.note_outcome(result)
        if isinstance(result.error, DeviceLost):
            self.give_up(result.error)
            return
        if self.under_way:
            self.note_start(self.under_way[0])
        self.changed.set()
        try:
            for step in [] if result.step.is_canary else self.batcher.settle(result, monotonic()):
                self.run(step)
        except Exception as error:  # a bug of ours; the jobs of this step must hear of it
            logger.exception("the result of a step of model %s could not be handed out", self.model)
            self.batcher.fail_step(result.step, EngineFailure(f"{type(error).__name__}: {error}"))
        if self.batcher.max_steps_under_way == 1 and self.pause_s(monotonic()) == 0:
            self.form_step()  # the device is waiting; telling and counting can be done while it computes
        self.batcher.deliver()
        if result.output is not None:
            self.observe(result)

    def note_outcome(self, result: StepResult[AnyStep]) -> None:
        is_good = result.output is not None and (not result.step.is_canary or result.output.is_finite)
        self.health.end(result.ended_s, is_good=is_good, is_canary=result.step.is_canary)
        if result.error is not None and not isinstance(result.error, EngineError):
            logger.error("a step of model %s failed", self.model, exc_info=result.error)

    def observe(self, result: StepResult[AnyStep]) -> None:
        self.batcher.observe(result)
        step = result.step
        if step.oldest_arrival_s is None:
            return
        steps = self.metrics.bind_steps(self.model, self.replica)
        for number, batch in enumerate(result.batches):
            steps.observe(
                num_tokens=batch.num_tokens,
                num_seqs=batch.num_seqs,
                max_seqlen=batch.max_seqlen,
                pads=self.executor.info.pads,
                predicted_s=step.predicted_s,
                actual_s=(result.ended_s - result.started_s) / len(result.batches),
                batch_wait_s=None if number else result.started_s - step.oldest_arrival_s,
            )

    async def watch(self) -> None:
        """Publish gauges; run canaries; and when nothing has run for a while, let the engine tidy up.

        Raises EngineError, which ends the process, where a step hangs or canaries go on failing.
        """
        while True:
            now_s = monotonic()
            if self.under_way:  # one that waits for its turn does not hang
                self.health.begin(self.started_s, self.under_way[0].predicted_s)
            problem = self.health.explain_hang(now_s) or self.health.explain_failures()
            if problem is not None:
                raise EngineError(problem)
            if now_s - self.last_observed_s >= OBSERVE_PERIOD_S:
                self.last_observed_s = now_s
                self.publish()
            is_idle = not self.under_way and self.batcher.wait_s(now_s) is None
            has_canary = any(step.is_canary for step in self.under_way)
            if not has_canary and self.health.is_canary_due(now_s, is_idle=is_idle):
                if is_idle:
                    self.batcher.check_books()
                    self.executor.trim()
                self.run_canary(now_s)
            await asyncio.sleep(WATCH_PERIOD_S)
            if monotonic() - now_s > PAUSE_S:
                self.oldest_since_s = monotonic()  # all of this process stood still, and the step did, too

    def publish(self) -> None:
        queued_tokens = self.batcher.num_queued_tokens
        self.metrics.observe_engine(self.model, self.replica, self.executor.memory(), queued_tokens)
        self.batcher.publish(self.metrics)
