"""Keeps one engine busy: forms the next step as soon as it can be formed, and hands out what came of the last one.

Scheduling and running belong in one loop, and a busy HTTP event loop must never starve the device; so this loop lives
in the engine's own process (`engine_process`), or in the HTTP process where the configuration says `inline`. It is an
EngineClient itself: what crosses the process border is exactly its interface. What a step is made of, and what becomes
of its result, is the business of the engine's kind of work: `encoding` or `generating`.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

import numpy as np

from runtime.engine import Engine, EngineError
from runtime.kv_cache.blocks import BlockAllocator
from server.engine.batchers.cache_metrics import CacheMetrics
from server.engine.batchers.decoding import Generating, MakeMatcher
from server.engine.batchers.packed import Encoding
from server.engine.batchers.running_set import Residents
from server.engine.batchers.scheduler import Choice, Scheduler, SchedulerLimits
from server.engine.batchers.sequences import Matcher
from server.engine.cost_model import CostModel, StepCost
from server.engine.executor import DeviceThread, Step, StepResult
from server.metrics import Metrics
from server.wire.event_stream import EventStream
from server.wire.job import (
    Answer,
    DeadlineExceeded,
    EngineFailure,
    EngineStatus,
    EngineUnavailable,
    GenerationParams,
    Request,
    TokenArray,
    TokenSequence,
    Unservable,
)

logger = logging.getLogger("padless.engine")

MAX_FAILED_CANARIES = 3
"""In a row; then the engine will not recover by itself, and its process should be started again."""
PREFETCH_LEAD_S = 0.002
"""The next step is formed this long before the running one should end: as late as is safe, so that it is as full as
can be, and early enough that the engine never waits for Python."""
OBSERVE_PERIOD_S = 0.5
CANARY = TokenSequence(np.zeros(1, np.int32))


class Work(Protocol):
    """What one kind of engine does in its steps."""

    can_prefetch: bool

    def form(self, choice: Choice) -> Step | None: ...

    def form_canary(self, sequence: TokenSequence) -> Step: ...

    def measure_cost(self, step: Step) -> StepCost: ...

    def is_good(self, result: StepResult) -> bool: ...

    def hand_out(self, result: StepResult) -> list[Step]:
        """Returns what has to be tried again."""

    def forget_cancelled(self, request: Request) -> None: ...

    def fail(self, request: Request, error: Exception) -> None: ...

    def fail_all(self, error: Exception) -> None: ...


def refuse_grammar(kind: str, text: str) -> Matcher:
    raise Unservable(f"this model has no tokenizer.json, so {kind.replace('_', ' ')} cannot be followed; leave it out")


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How an engine with a KV cache generates."""

    max_total_tokens: int
    """Of a prompt and its answer."""
    prefill_chunk_tokens: int = 0
    has_prefix_cache: bool = True
    num_drafts: int = 0
    make_matcher: MakeMatcher = refuse_grammar


@dataclass(slots=True)
class Running:
    """Steps given to the device and not yet back, oldest first, and when the oldest should end."""

    steps: list[Step] = field(default_factory=list)
    predicted_end_s: float = 0.0


class EngineLoop:
    """Mutable: the work under way, the scheduler's queue, the steps on the device, and the last success."""

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
        generation: GenerationOptions | None = None,
    ) -> None:
        self.engine = engine
        self.scheduler = Scheduler(limits, cost_model)
        self.encoding: Encoding | None = None
        self.generating: Generating | None = None
        if generation is None:
            self.work: Work = Encoding(self.scheduler, engine.info.outputs[0], self.wake)
            self.encoding = self.work
        else:
            self.work = self.generating = self.make_generating(generation)
        self.metrics = metrics
        self.cache_metrics = None if generation is None else CacheMetrics(metrics.registry, model, replica)
        self.model, self.replica = model, replica
        self.canary_interval_s = canary_interval_s
        self.running = Running()
        self.last_success_s = 0.0
        self.last_canary_s = 0.0
        self.num_failed_canaries = 0
        self.crash: BaseException | None = None
        self.crashed = asyncio.Event()
        self.changed = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []
        self.device = DeviceThread(engine, f"engine-{model}-{replica}", self.deliver)

    def make_generating(self, options: GenerationOptions) -> Generating:
        info = self.engine.info
        allocator = BlockAllocator(info.num_blocks, has_prefix_cache=options.has_prefix_cache)
        # The newest token of a step, and all guesses after it but the last one.
        lookahead = info.num_drafts
        self.scheduler.residents = Residents(allocator, options.prefill_chunk_tokens, lookahead)
        return Generating(
            self.scheduler,
            vocab_size=int(info.outputs[0].dims[-1]),
            max_total_tokens=options.max_total_tokens,
            wake=self.wake,
            make_matcher=options.make_matcher,
            num_drafts=options.num_drafts,
        )

    def wake(self) -> None:
        self.changed.set()

    async def start(self) -> None:
        """Start the device thread and prove with a canary step that the engine computes."""
        self.loop = asyncio.get_running_loop()
        self.device.start()
        self.tasks = [asyncio.create_task(self.feed()), asyncio.create_task(self.watch())]
        for task in self.tasks:
            task.add_done_callback(self.note_end)
        self.submit(self.work.form_canary(CANARY))

    def note_end(self, task: asyncio.Task[None]) -> None:
        """A task of ours ended by an error: nothing would be fed any more. Everybody is told, and nothing hangs."""
        if task.cancelled() or task.exception() is None:
            return
        self.crash = task.exception()
        logger.error("the loop of model %s crashed", self.model, exc_info=self.crash)
        self.work.fail_all(EngineUnavailable(f"the engine's loop crashed: {self.crash}"))
        self.crashed.set()

    async def close(self) -> None:
        """Stop. Calls still under way fail; whoever drains lets them finish first."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.to_thread(self.device.stop)
        self.work.fail_all(EngineUnavailable("the engine was stopped"))
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
        self.check_crash()
        if self.encoding is None:
            raise EngineFailure("this engine generates and does not encode. This is a bug.")
        return await self.encoding.run(sequences, deadline_s)

    def generate(self, prompt: TokenArray, params: GenerationParams, deadline_s: float) -> EventStream:
        """See EngineClient."""
        self.check_crash()
        if self.generating is None:
            raise EngineFailure("this engine encodes and does not generate. This is a bug.")
        return self.generating.start(prompt, params, deadline_s)

    def check_crash(self) -> None:
        if self.crash is not None:
            raise EngineUnavailable(f"the engine's loop crashed: {self.crash}")

    async def feed(self) -> None:
        """Form a step whenever the device can take one: one runs, and one is ready behind it where that can be."""
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
        if num_running > int(self.work.can_prefetch):
            return None
        wait_s = self.scheduler.wait_s(now_s)
        if wait_s is None or num_running == 0:
            return wait_s
        return max(wait_s, self.running.predicted_end_s - PREFETCH_LEAD_S - now_s)

    def form_step(self) -> None:
        choice = self.scheduler.next_step(monotonic())
        for request in choice.expired:
            self.work.fail(request, DeadlineExceeded("the deadline passed before the answer was complete"))
        for request in choice.cancelled:
            self.work.forget_cancelled(request)
        step = self.work.form(choice)
        if step is not None:
            self.submit(step)

    def submit(self, step: Step) -> None:
        now_s = monotonic()
        self.running.steps.append(step)
        if len(self.running.steps) == 1:
            self.running.predicted_end_s = now_s + step.predicted_s
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
            for step in [] if result.step.is_canary else self.work.hand_out(result):
                self.submit(step)
        except Exception as error:  # a bug of ours; the calls of this step must hear of it
            logger.exception("the result of a step of model %s could not be handed out", self.model)
            for request in result.step.owners:
                self.work.fail(request, EngineFailure(f"{type(error).__name__}: {error}"))
        if not self.work.can_prefetch and self.pause_s(monotonic()) == 0:
            self.form_step()  # the device is waiting; counting can be done while it computes
        self.note_outcome(result)

    def note_outcome(self, result: StepResult) -> None:
        is_good = self.work.is_good(result)
        if is_good:
            self.last_success_s = result.ended_s
        if is_good or result.step.is_canary:
            self.num_failed_canaries = 0 if is_good else self.num_failed_canaries + 1
        if result.output is not None:
            self.observe(result)
        elif not isinstance(result.error, EngineError):
            logger.error("a step of model %s failed", self.model, exc_info=result.error)

    def observe(self, result: StepResult) -> None:
        batch, step = result.step.batch, result.step
        actual_s = result.ended_s - result.started_s
        self.scheduler.cost_model.observe(self.work.measure_cost(step), batch.num_seqs, actual_s)
        if step.is_canary:
            return
        self.metrics.observe_step(
            self.model,
            self.replica,
            num_tokens=batch.num_tokens,
            num_seqs=batch.num_seqs,
            max_seqlen=batch.max_seqlen,
            predicted_s=step.predicted_s,
            actual_s=actual_s,
            batch_wait_s=max((result.started_s - request.arrival_s for request in step.requests), default=None),
        )
        if self.cache_metrics is not None:
            self.cache_metrics.observe_step(*count_phases(step))

    async def watch(self) -> None:
        """Publish gauges, and when nothing has run for a while, run a canary and let the engine tidy up.

        Raises EngineError, which ends the process, where canaries go on failing.
        """
        while True:
            memory, queue = self.engine.memory(), self.scheduler.queue
            self.metrics.observe_engine(self.model, self.replica, memory, queue.num_tokens)
            if self.cache_metrics is not None and self.generating is not None:
                self.cache_metrics.observe(self.generating.describe_cache())
            await asyncio.sleep(OBSERVE_PERIOD_S)
            if self.num_failed_canaries >= MAX_FAILED_CANARIES:
                raise EngineError(f"{self.num_failed_canaries} canaries in a row have failed")
            is_idle = not self.running.steps and self.scheduler.wait_s(monotonic()) is None
            if is_idle and monotonic() - max(self.last_success_s, self.last_canary_s) >= self.canary_interval_s:
                self.last_canary_s = monotonic()
                if self.generating is not None:
                    self.generating.check_books()
                self.engine.trim()
                self.submit(self.work.form_canary(CANARY))


def count_phases(step: Step) -> tuple[int, int]:
    """Tokens of prompts, and of answers."""
    is_answer = [part.num_past_tokens >= part.generation.num_prompt_tokens for part in step.parts]
    num_decoded = sum(part.num_tokens for part, decodes in zip(step.parts, is_answer, strict=True) if decodes)
    return step.batch.num_tokens - num_decoded, num_decoded
