"""Work that goes on from its inputs token by token: generations under way, and those that wait for blocks.

Each step gives every generation under way its next tokens and a piece of the prompts that wait, packed. Nobody but this
batcher's running set touches the blocks of the KV cache.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from runtime.batch import Batch
from runtime.engine import EngineError, EngineInfo
from runtime.kv_cache.blocks import BlockAllocator
from runtime.kv_cache.examples import page_alone
from server.engine.batchers.batcher import CANARY, Run, Step, StepLimits, StepResult
from server.engine.batchers.cache_metrics import CacheMetrics, CacheReport
from server.engine.batchers.continuation import Continuation, plan_continuation
from server.engine.batchers.counters import Counters
from server.engine.batchers.decoding_job import DecodingJob, Outbox
from server.engine.batchers.feasibility import check_feasible
from server.engine.batchers.job_queue import JobQueue, take_turns
from server.engine.batchers.matcher import MakeMatcher, refuse_grammar
from server.engine.batchers.packing import pack_parts, pack_sequences
from server.engine.batchers.part import Part, cost_of_parts, count_phases
from server.engine.batchers.running_set import GenerationPlan, RunningSet, StepBudget
from server.engine.batchers.sampling_rows import Row, list_rows
from server.engine.batchers.sequences import Generation
from server.engine.batchers.settlement import Settlement, list_generations
from server.engine.batchers.sources import read_source, split_weights
from server.engine.batchers.token_cap import TokenCap
from server.engine.cost_model import CostModel, Rate, StepCost
from server.errors import DeadlineExceeded, EngineFailure, Unservable
from server.metrics import Metrics
from server.wire.generation import GenerationParams, write_news
from server.wire.job import Job
from server.wire.result_stream import ResultStream


@dataclass(frozen=True, slots=True)
class DecodingOptions:
    """How an engine with a KV cache generates."""

    max_total_tokens: int
    """Of a prompt and its answer."""
    prefill_chunk_tokens: int = 0
    has_prefix_cache: bool = True
    num_drafts: int = 0
    make_matcher: MakeMatcher = refuse_grammar


@dataclass(frozen=True, slots=True)
class DecodingStep(Step):
    """Sequence i of the batch is `parts[i]`; row of logits i is `rows[i]`."""

    parts: list[Part] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    continuation: Continuation | None = None

    def follow(self, runs: Sequence[Run], elapsed_s: float) -> tuple[Sequence[int], Batch] | None:
        return None if self.continuation is None else self.continuation.follow(runs, elapsed_s)


class DecodingBatcher:
    """A Batcher. Mutable: the queue, the jobs that are not answered, the running set, and counts of what was done."""

    max_steps_under_way = 1
    """The next step begins with the tokens that the running one gives."""

    def __init__(
        self,
        limits: StepLimits,
        cost_model: CostModel,
        info: EngineInfo,
        options: DecodingOptions,
        *,
        vocab_size: int,
        wake: Callable[[], None],
        metrics: CacheMetrics | None = None,
    ) -> None:
        self.wake = wake
        self.limits = limits
        self.cap = TokenCap(limits.max_batch_tokens)
        self.cost_model = cost_model
        self.options = options
        self.has_drafts = bool(options.num_drafts or info.num_drafts)
        self.vocab_size = vocab_size
        self.counters = Counters(info.num_counters) if info.num_counters else None
        self.rate = Rate()
        self.queue: JobQueue[Generation] = JobQueue()
        self.decodings: dict[ResultStream, DecodingJob] = {}
        self.owners: dict[int, DecodingJob] = {}
        """By the id of a generation."""
        self.outbox: Outbox = []
        self.compiling: set[asyncio.Task[None]] = set()
        allocator = BlockAllocator(info.num_blocks, has_prefix_cache=options.has_prefix_cache)
        self.running = RunningSet(allocator, options.prefill_chunk_tokens, info.num_drafts)
        self.settlement = Settlement(self.running, self.fail_generation, options.num_drafts)
        self.metrics = metrics
        self.num_preemptions = 0

    @property
    def num_queued_tokens(self) -> int:
        return self.queue.num_tokens

    def tokens_per_s(self) -> float:
        """Of prompts and answers as they were mixed lately: most of what is admitted comes a token at a time."""
        if self.rate.tokens_per_s:
            return self.rate.tokens_per_s
        num_seqs = self.limits.max_batch_requests
        step_s = self.cost_model.predict(StepCost(num_seqs, num_seqs * self.options.max_total_tokens // 2))
        return num_seqs / step_s if step_s > 0 else 0.0

    def add(self, job: Job, stream: ResultStream, now_s: float) -> None:
        """See Batcher."""
        params: GenerationParams = job.params
        prompts = [job.input_ids.row(index).tolist() for index in range(job.num_inputs)]
        sources = [read_source(job, index) for index in range(job.num_inputs)]
        num_blocks, most = self.running.allocator.num_blocks, self.options.max_total_tokens
        for prompt, source in zip(prompts, sources, strict=True):
            num_source_tokens = 0 if source is None else source.num_tokens
            check_feasible(len(prompt), params, self.limits, num_blocks, most, num_source_tokens)
        waiting = self.queue.enter(priority=job.priority, deadline_s=now_s + job.timeout_s, arrival_s=now_s)
        decoding = self.decodings[stream] = DecodingJob(job, stream, waiting, self.outbox)
        for prompt, source in zip(prompts, sources, strict=True):
            self.owners[id(decoding.add_prompt(prompt, source, most))] = decoding
        if params.grammar[0]:
            task = asyncio.create_task(self.compile_and_queue(decoding))
            self.compiling.add(task)
            task.add_done_callback(self.compiling.discard)
        else:
            self.enqueue(decoding)

    def enqueue(self, decoding: DecodingJob) -> None:
        for index, generation in enumerate(decoding.generations):
            if generation is not None:
                self.queue.push(decoding.waiting, index, generation)

    async def compile_and_queue(self, decoding: DecodingJob) -> None:
        """A large schema takes seconds, in which everybody else's tokens have to go on."""
        try:
            matcher = await asyncio.to_thread(self.options.make_matcher, *decoding.params.grammar)
        except Unservable as error:
            self.fail(decoding, error)
            return
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in the Rust library is no Exception
            self.fail(decoding, EngineFailure(f"{type(error).__name__}: {error}"))
            return
        if decoding.stream in self.decodings:
            for generation in decoding.generations:
                if generation is not None:
                    generation.live[0].matcher = matcher.fork()
            self.enqueue(decoding)
            self.wake()

    def cancel(self, stream: ResultStream, rows: Sequence[int]) -> None:
        decoding = self.decodings.get(stream)
        if decoding is None:
            return
        decoding.open_rows -= set(rows)
        if not rows or not decoding.open_rows:
            self.forget(decoding)
            return
        for row in rows:
            index, answer = divmod(row, decoding.params.num_sequences)
            generation = decoding.generations[index]
            if generation is not None:
                generation.stopped.add(answer)
                if len(generation.stopped) == generation.params.num_sequences:
                    self.finish(generation)

    def wait_s(self, now_s: float) -> float | None:
        """Hungry: answers should flow."""
        return 0.0 if self.running.generations or self.queue.order else None

    def form(self, now_s: float) -> DecodingStep | None:
        self.fail_late(now_s)
        plan = GenerationPlan()
        limits = self.limits
        # One token of each answer has to have room: beams get theirs together or not at all.
        num_tokens = min(limits.max_batch_tokens, max(self.cap.num_tokens, limits.max_batch_requests))
        budget = StepBudget(num_tokens, limits.max_batch_requests, limits.max_batch_logits)
        budget.num_sequences -= self.running.num_sequences
        self.running.advance(budget, plan)
        self.admit(budget, plan)
        for generation in plan.preempted:
            decoding = self.owners[id(generation)]
            self.queue.push(decoding.waiting, generation.place[3], generation)
        self.num_preemptions += len(plan.preempted)
        for generation in plan.starved:
            self.end_early(generation)
        return self.pack_step(plan.parts, plan.copies, may_go_on=not plan.preempted) if plan.parts else None

    def fail_late(self, now_s: float) -> None:
        late = DeadlineExceeded("the deadline passed before the answer was complete")
        for waiting in self.queue.list_late(now_s):
            self.fail(self.owners[id(next(iter(waiting.items.values())))], late)
        for generation in list(self.running.generations):
            if generation.deadline_s <= now_s and id(generation) in self.owners:
                self.fail(self.owners[id(generation)], late)

    def admit(self, budget: StepBudget, plan: GenerationPlan) -> None:
        """From the queue, in its order, one prompt of each job at a time. None may pass a prompt that waits for blocks,
        which would wait for ever; nor may anybody come in while blocks have just run out: who had to give way comes
        first."""
        for waiting, index, generation in take_turns(self.queue.order):
            if plan.preempted or not budget.has_room(generation):
                return
            if self.make_way(generation, budget, plan):
                self.queue.take(waiting, index)
                budget.num_sequences -= generation.num_rows
                self.running.prefill(generation, budget, plan)
                continue
            if not self.running.generations and generation.num_rows <= budget.num_sequences:
                plan.starved.append(self.queue.take(waiting, index))
                continue
            return

    def make_way(self, generation: Generation, budget: StepBudget, plan: GenerationPlan) -> bool:
        """Take a generation in, in the place of less urgent ones if there is none otherwise, and if that is enough."""
        if generation.num_rows <= budget.num_sequences and self.running.admit(generation):
            return True
        victims = self.running.list_less_urgent(generation)
        if not victims or not self.running.would_fit(generation, budget.num_sequences, victims):
            return False
        for victim in victims:
            self.running.preempt(victim, plan)
            budget.num_sequences += victim.num_rows
            if generation.num_rows <= budget.num_sequences and self.running.admit(generation):
                return True
        return False

    def pack_step(self, parts: list[Part], copies: list[tuple[int, int]], *, may_go_on: bool = False) -> DecodingStep:
        rows, cost = list_rows(parts), cost_of_parts(parts)
        predicted_s = self.cost_model.predict(cost)
        continuation = None
        if may_go_on and not self.has_drafts:
            is_awaited = bool(self.queue.order)
            continuation = plan_continuation(parts, rows, self.running, predicted_s, is_awaited=is_awaited)
        batch = pack_parts(parts, copies, rows, self.vocab_size, self.counters)
        oldest_s = min(self.owners[id(part.generation)].waiting.arrival_s for part in parts)
        return DecodingStep(batch, cost, predicted_s, oldest_s, parts, rows, copies, continuation)

    def form_canary(self) -> DecodingStep:
        """One token, written to the scratch block."""
        cost = StepCost(1, 1)
        return DecodingStep(page_alone(pack_sequences([CANARY]), num_blocks=1), cost, self.cost_model.predict(cost))

    def settle(self, result: StepResult[DecodingStep], now_s: float) -> list[DecodingStep]:
        output, step = result.output, result.step
        if output is None or output.tokens is None:
            return self.retry_or_fail(step, result.error or EngineError("the engine gave no reason"))
        self.settlement.settle(step.parts, step.rows, output.tokens, split_weights(step.batch, output))
        for run in result.following:
            self.settlement.follow([step.parts[place] for place in run.places], run.output.tokens)
        for generation in list_generations(step.parts):
            self.settlement.attempt(generation, self.tidy_up, generation)
        return []

    def deliver(self) -> bool:
        """All at once: it is a few numbers each."""
        outbox, self.outbox[:] = list(self.outbox), []
        for stream, news, is_last in outbox:
            stream.put(write_news(news, is_last=is_last))
        return False

    def tidy_up(self, generation: Generation) -> None:
        """After a step: answers nobody listens to end, news go out, and what has no answers left is over."""
        if generation.is_over:
            return
        if generation.beams is None and generation.has_forked:
            for sequence in [each for each in generation.live if each.index in generation.stopped]:
                if not generation.branches:
                    self.running.drop(generation, sequence)
        generation.flush()
        if not generation.live:
            self.finish(generation)

    def end_early(self, generation: Generation) -> None:
        """No more blocks are to be had, and nobody else holds any: what there is has to do."""
        if generation.beams is not None:
            generation.beams.cut()
            generation.tell_beams()
        else:
            for sequence in generation.branches or generation.live:
                generation.tell(sequence.index, reason="length")
        generation.flush()
        self.finish(generation)

    def finish(self, generation: Generation) -> None:
        """A prompt has all of its answers, or nobody wants them."""
        decoding = self.owners.get(id(generation))
        if decoding is None:
            return
        self.let_go(decoding, generation)
        if not decoding.num_open:
            self.forget(decoding)

    def let_go(self, decoding: DecodingJob, generation: Generation) -> None:
        index = generation.place[3]
        generation.is_over = True
        del self.owners[id(generation)]
        decoding.generations[index] = None
        if generation in self.running.generations:
            self.running.release(generation)
        if index in decoding.waiting.items:
            self.queue.take(decoding.waiting, index)

    def forget(self, decoding: DecodingJob) -> None:
        """Nothing is left of the job; its blocks are free."""
        self.decodings.pop(decoding.stream, None)
        for generation in decoding.generations:
            if generation is not None:
                self.let_go(decoding, generation)

    def retry_or_fail(self, step: DecodingStep, error: Exception) -> list[DecodingStep]:
        """Halve a failed step until the culprit is alone: writing the same keys and values again does no harm."""
        self.cap.learn(step.cost.num_tokens, error)
        for part in step.parts:
            part.sequence.counter = None  # who knows what was counted before it failed
        waiting = [part for part in step.parts if part.generation in self.running.generations]
        if len(step.parts) > 1:
            middle = len(waiting) // 2
            halves = [half for half in (waiting[:middle], waiting[middle:]) if half]
            return [self.pack_step(half, copies_into(half, step.copies)) for half in halves]
        for part in waiting:
            self.fail_generation(part.generation, EngineFailure(str(error)))
        return []

    def observe(self, result: StepResult[DecodingStep]) -> None:
        step = result.step
        actual_s = result.ended_s - result.started_s
        for _ in result.batches:
            self.cost_model.observe(step.cost, step.batch.num_seqs, actual_s / len(result.batches))
        if step.is_canary:
            return
        num_following = sum(run.batch.num_tokens for run in result.following)
        self.rate.observe(step.cost.num_tokens + num_following, actual_s)
        if self.metrics is not None:
            num_prompt_tokens, num_decoded = count_phases(step.parts, step.cost)
            self.metrics.observe_step(num_prompt_tokens, num_decoded + num_following)

    def fail_generation(self, generation: Generation, error: Exception) -> None:
        """The whole job fails with one of its prompts."""
        decoding = self.owners.get(id(generation))
        if decoding is not None:
            generation.flush()
            self.fail(decoding, error)

    def fail(self, decoding: DecodingJob, error: Exception) -> None:
        if decoding.stream in self.decodings:
            self.forget(decoding)
            self.deliver()  # what came before the error is heard before it
            decoding.stream.fail(error)

    def fail_step(self, step: DecodingStep, error: Exception) -> None:
        for generation in list_generations(step.parts):
            self.fail_generation(generation, error)

    def fail_all(self, error: Exception) -> None:
        for decoding in list(self.decodings.values()):
            self.fail(decoding, error)

    def publish(self, metrics: Metrics) -> None:
        running = self.running
        num_open = sum(decoding.num_open for decoding in self.decodings.values())
        report = CacheReport(
            num_running=len(running.generations),
            num_waiting=num_open - len(running.generations),
            num_blocks=running.allocator.num_blocks,
            num_used_blocks=running.allocator.num_used_blocks,
            num_prompt_tokens=running.num_prompt_tokens,
            num_cached_tokens=running.num_cached_tokens,
            num_preemptions=self.num_preemptions,
            num_drafted=self.settlement.num_drafted,
            num_accepted=self.settlement.num_accepted,
        )
        if self.metrics is not None:
            self.metrics.observe(report)

    def check_books(self) -> None:
        self.running.check()
        assert self.decodings or not (self.owners or self.queue.num_items), "Generations wait for nobody."


def copies_into(parts: Sequence[Part], copies: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those copies of blocks that these parts read."""
    own = {block_id for part in parts for block_id in part.sequence.table.block_ids}
    return [(source, target) for source, target in copies if target in own]
