"""Generations under way: what a step has computed becomes tokens of answers, and answers end, fork or go on."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from runtime.batch import NO_TOKEN, SampledTokens
from runtime.engine import EngineError
from runtime.kv_cache.examples import page_alone
from server.engine.batchers.cache_metrics import CacheReport
from server.engine.batchers.drafting import propose_drafts
from server.engine.batchers.feasibility import check_servable, explain_no_token
from server.engine.batchers.packing import pack, pack_parts
from server.engine.batchers.running_set import GenerationPlan, Part, Residents
from server.engine.batchers.sampling_rows import Row, list_rows
from server.engine.batchers.scheduler import Choice, Scheduler
from server.engine.batchers.sequences import Generation, Matcher, Sequence
from server.engine.cost_model import StepCost
from server.engine.executor import Step, StepResult
from server.wire.event_stream import EventStream
from server.wire.job import (
    EngineFailure,
    GenerationParams,
    Request,
    TokenArray,
    TokenLogprob,
    TokenSequence,
    Unservable,
)

logger = logging.getLogger("padless.engine")

MakeMatcher = Callable[[str, str], Matcher]
"""(kind, text) of `GenerationParams.grammar` to what follows an answer through it. Raises Unservable."""


class Generating:
    """Mutable: the generations under way and counts of what they did. Belongs to the event loop's thread.

    `num_drafts`: the most tokens guessed ahead from what an answer has said before; 0: none. An engine's own drafts go
    before those.
    """

    can_prefetch = False
    """The next step begins with the tokens that the running one gives."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        vocab_size: int,
        max_total_tokens: int,
        wake: Callable[[], None],
        make_matcher: MakeMatcher,
        num_drafts: int = 0,
    ) -> None:
        assert scheduler.residents is not None, "A decoder's scheduler has residents. This is a bug."
        self.scheduler = scheduler
        self.residents: Residents = scheduler.residents
        self.vocab_size = vocab_size
        self.max_total_tokens = max_total_tokens
        self.wake = wake
        self.make_matcher = make_matcher
        self.num_drafts = num_drafts
        self.streams: dict[int, tuple[Generation, EventStream]] = {}
        self.compiling: set[asyncio.Task[None]] = set()
        self.ids = itertools.count()
        self.num_preemptions = self.num_drafted = self.num_accepted = 0

    def check_books(self) -> None:
        """Every block is free or held by somebody we know. Raises AssertionError."""
        allocator = self.residents.allocator
        allocator.check()
        assert self.residents.generations or not allocator.num_used_blocks, "Blocks are held by nobody."

    def describe_cache(self) -> CacheReport:
        """How things stand."""
        residents = self.residents
        return CacheReport(
            num_running=len(residents.generations),
            num_waiting=len(self.streams) - len(residents.generations),
            num_blocks=residents.allocator.num_blocks,
            num_used_blocks=residents.allocator.num_used_blocks,
            num_prompt_tokens=residents.num_prompt_tokens,
            num_cached_tokens=residents.num_cached_tokens,
            num_preemptions=self.num_preemptions,
            num_drafted=self.num_drafted,
            num_accepted=self.num_accepted,
        )

    def start(self, prompt: TokenArray, params: GenerationParams, deadline_s: float) -> EventStream:
        """Queue a generation. Raises Unservable where it could never run."""
        num_blocks = self.residents.allocator.num_blocks
        check_servable(len(prompt), params, self.scheduler.limits, num_blocks, self.max_total_tokens)
        call_id = next(self.ids)
        generation = Generation(
            *(0, call_id, TokenSequence(prompt), deadline_s, monotonic()),
            params=params,
            max_total_tokens=self.max_total_tokens,
        )

        def cancel() -> None:
            self.scheduler.queue.cancel([generation])

        def stop(index: int) -> None:
            generation.stopped.add(index)
            if len(generation.stopped) == params.num_sequences:
                cancel()

        stream = EventStream(params.num_sequences, stop, cancel)
        generation.emit = stream.put
        self.streams[call_id] = (generation, stream)
        if params.grammar[0]:
            task = asyncio.create_task(self.compile_and_queue(generation))
            self.compiling.add(task)
            task.add_done_callback(self.compiling.discard)
        else:
            self.queue(generation)
        return stream

    def queue(self, generation: Generation) -> None:
        self.scheduler.add([generation])
        self.wake()

    async def compile_and_queue(self, generation: Generation) -> None:
        """A large schema takes seconds, in which everybody else's tokens have to go on."""
        try:
            matcher = await asyncio.to_thread(self.make_matcher, *generation.params.grammar)
        except Exception as error:
            is_known = isinstance(error, Unservable)
            self.fail(generation, error if is_known else EngineFailure(f"{type(error).__name__}: {error}"))
            return
        generation.live[0].matcher = matcher
        self.queue(generation)

    def form(self, choice: Choice) -> Step | None:
        plan = choice.plan
        self.num_preemptions += len(plan.preempted)
        for generation in plan.starved:
            self.end_early(generation)
        return self.pack_step(plan) if plan.parts else None

    def form_canary(self, sequence: TokenSequence) -> Step:
        """One token, written to the scratch block."""
        batch = page_alone(pack([sequence]), num_blocks=1)
        return Step(batch, [], self.scheduler.cost_model.predict(StepCost(1, 1)))

    def pack_step(self, plan: GenerationPlan) -> Step:
        rows = list_rows(plan.parts)
        predicted_s = self.scheduler.cost_model.predict(cost_of_parts(plan.parts))
        return Step(pack_parts(plan, rows, self.vocab_size), [], predicted_s, plan.parts, rows)

    def measure_cost(self, step: Step) -> StepCost:
        return cost_of_parts(step.parts) if step.parts else StepCost(1, 1)

    def is_good(self, result: StepResult) -> bool:
        tokens = None if result.output is None else result.output.tokens
        return tokens is not None and not (tokens.token_ids == NO_TOKEN).any()

    def hand_out(self, result: StepResult) -> list[Step]:
        """Give each generation its tokens. Returns what has to be tried again."""
        tokens = None if result.output is None else result.output.tokens
        step = result.step
        if tokens is None:
            return self.retry_or_fail(step, result.error or EngineError("the engine gave no reason"))
        first = 0
        candidates: dict[int, list[tuple[Sequence, int]]] = {}
        for part in step.parts:
            last = first
            while last < len(step.rows) and step.rows[last].part is part:
                last += 1
            with self.failing_alone(part.generation):
                self.advance(part, range(first, last), step.rows, tokens, candidates)
            first = last
        self.search(step.parts, candidates, tokens)
        for generation in {id(part.generation): part.generation for part in step.parts}.values():
            self.tidy_up(generation)
        return []

    @contextmanager
    def failing_alone(self, generation: Generation) -> Iterator[None]:
        """What goes wrong with one generation's tokens must not end its batch-mates."""
        try:
            yield
        except Unservable as error:
            self.fail(generation, error)
        except Exception as error:
            logger.exception("the tokens of a generation could not be handed out")
            self.fail(generation, EngineFailure(f"{type(error).__name__}: {error}"))

    def advance(
        self,
        part: Part,
        places: range,
        rows: list[Row],
        tokens: SampledTokens,
        candidates: dict[int, list[tuple[Sequence, int]]],
    ) -> None:
        """One sequence by what was computed of it; `places`: its rows."""
        generation, sequence = part.generation, part.sequence
        sequence.num_computed_tokens += part.num_tokens - len(part.drafts)
        sequence.drafts = []
        drawn = [place for place in places if rows[place].forced_id == NO_TOKEN]
        for place in places:
            if rows[place].forced_id != NO_TOKEN:
                generation.prompt_logprobs.append(read_logprob(tokens, place, generation.params.num_prompt_logprobs))
        if any(tokens.token_ids[place] == NO_TOKEN for place in places):
            self.fail(generation, explain_no_token(generation.params))
        elif part.is_complete_at(sequence.num_computed_tokens):
            self.go_on(part, drawn, tokens, candidates)
        self.publish(sequence)

    def go_on(
        self,
        part: Part,
        drawn: list[int],
        tokens: SampledTokens,
        candidates: dict[int, list[tuple[Sequence, int]]],
    ) -> None:
        generation, sequence = part.generation, part.sequence
        if generation.params.max_tokens == 0:
            for index in range(generation.params.num_sequences):
                generation.tell(index, reason="length")
            self.drop(generation, sequence)
        elif generation.beams is not None:
            candidates.setdefault(id(generation), []).append((sequence, drawn[0]))
        elif not generation.has_forked:
            self.fork(generation, sequence, drawn, tokens)
        else:
            self.accept(part, drawn, tokens)

    def fork(self, generation: Generation, prompt: Sequence, drawn: list[int], tokens: SampledTokens) -> None:
        """The prompt is computed: its first tokens begin as many answers."""
        self.publish(prompt)
        generation.has_forked = True
        generation.live += [self.residents.fork(prompt, index) for index in range(1, len(drawn))]
        for sequence, place in zip(list(generation.live), drawn, strict=True):
            if not self.append(generation, sequence, place, tokens):
                self.guess(generation, sequence, place, tokens)

    def accept(self, part: Part, drawn: list[int], tokens: SampledTokens) -> None:
        """The next token, and further ones as long as the drafts were what was then chosen.

        Each row's token is drawn from the model's own distribution, whatever the draft; a draft only decides whether
        the row behind it means anything. So answers are the same with drafts and without (compare Leviathan et al.,
        2023).
        """
        generation, sequence = part.generation, part.sequence
        self.num_drafted += len(part.drafts)
        for place, draft in zip(drawn, (*part.drafts, NO_TOKEN), strict=True):
            if self.append(generation, sequence, place, tokens):
                return
            if tokens.token_ids[place] != draft:
                self.guess(generation, sequence, place, tokens)
                return
            sequence.num_computed_tokens += 1
            self.num_accepted += 1

    def append(self, generation: Generation, sequence: Sequence, place: int, tokens: SampledTokens) -> bool:
        """One token of an answer. Whether it has ended with it."""
        token_id, num_top = int(tokens.token_ids[place]), generation.params.num_logprobs
        logprob = read_logprob(tokens, place, num_top) if num_top >= 0 else None
        if generation.append(sequence, token_id, logprob):
            self.drop(generation, sequence)
            return True
        if sequence.matcher is not None:
            sequence.matcher.accept(token_id)
        return False

    def guess(self, generation: Generation, sequence: Sequence, place: int, tokens: SampledTokens) -> None:
        """What may follow the newest token, none of it behind the answer's end.

        Grammars and guesses do not go together: a guess that breaks the rules would have to be masked row by row.
        """
        if sequence.matcher is not None:
            return
        drafts: list[int] = []
        if tokens.draft_ids.shape[1]:
            drafts = list(itertools.takewhile(lambda draft: draft != NO_TOKEN, tokens.draft_ids[place].tolist()))
        elif self.num_drafts:
            drafts = propose_drafts(sequence.token_ids, self.num_drafts)
        room = generation.max_new_tokens - generation.count_generated(sequence) - 1
        sequence.drafts = drafts[: max(0, room)]

    def search(
        self, parts: list[Part], candidates: dict[int, list[tuple[Sequence, int]]], tokens: SampledTokens
    ) -> None:
        """Beam searches: the beams choose together, once all of them have been computed."""
        for generation in {id(part.generation): part.generation for part in parts}.values():
            ready = candidates.get(id(generation), [])
            if generation.beams is None or not ready or generation not in self.residents.generations:
                continue
            if len(ready) < len(generation.live):
                for sequence, _ in ready:  # computed once more when the others are
                    sequence.num_computed_tokens = len(sequence.token_ids) - 1
                continue
            places = [place for _, place in ready]
            with self.failing_alone(generation):
                self.choose_beams(generation, [sequence for sequence, _ in ready], places, tokens)

    def choose_beams(
        self, generation: Generation, parents: list[Sequence], places: list[int], tokens: SampledTokens
    ) -> None:
        beams = generation.beams
        assert beams is not None
        width = beams.num_candidates
        going_on = beams.advance(tokens.top_ids[places, :width], tokens.top_logprobs[places, :width])
        generation.has_forked = True
        # All blocks are with who goes on, before a grammar may say that nobody does.
        generation.live = [self.residents.fork(parents[each.parent], index) for index, each in enumerate(going_on)]
        for parent in parents:
            self.residents.allocator.release(parent.table)
        for sequence, continuation in zip(generation.live, going_on, strict=True):
            sequence.token_ids.append(continuation.token_id)
            if sequence.matcher is not None:
                sequence.matcher.accept(continuation.token_id)
        if beams.is_over:
            generation.tell_beams()

    def publish(self, sequence: Sequence) -> None:
        """Let others find what is computed; nothing if the sequence has given up its blocks meanwhile."""
        if sequence.table.block_ids:
            computed = sequence.num_computed_tokens
            self.residents.allocator.publish(sequence.table, sequence.token_ids, computed, sequence.hashes)

    def drop(self, generation: Generation, sequence: Sequence) -> None:
        """An answer has ended: its blocks are free, and what is in them may still be found."""
        self.publish(sequence)
        self.residents.allocator.release(sequence.table)
        generation.live.remove(sequence)

    def tidy_up(self, generation: Generation) -> None:
        """After a step: answers nobody listens to end, news go out, and what has no answers left is over."""
        if generation.beams is None:
            for sequence in [each for each in generation.live if each.index in generation.stopped]:
                if generation.has_forked:
                    self.drop(generation, sequence)
        generation.flush()
        if not generation.live:
            self.forget(generation)

    def end_early(self, generation: Generation) -> None:
        """No more blocks are to be had, and nobody else holds any: what there is has to do."""
        if generation.beams is not None:
            generation.beams.cut()
            generation.tell_beams()
        else:
            for sequence in generation.live:
                generation.tell(sequence.index, reason="length")
        generation.flush()
        self.forget(generation)

    def forget(self, generation: Generation) -> None:
        if generation in self.residents.generations:
            self.residents.release(generation)
        self.streams.pop(generation.call_id, None)

    def retry_or_fail(self, step: Step, error: Exception) -> list[Step]:
        """Halve a failed step until the culprit is alone: writing the same keys and values again does no harm."""
        waiting = [part for part in step.parts if part.generation in self.residents.generations]
        if len(step.parts) > 1:
            copies = [(int(a), int(b)) for a, b in step.batch.paging.block_copies] if step.batch.paging else []
            middle = len(waiting) // 2
            halves = [half for half in (waiting[:middle], waiting[middle:]) if half]
            return [self.pack_step(GenerationPlan(half, copies if half is halves[0] else [])) for half in halves]
        for part in waiting:
            self.fail(part.generation, EngineFailure(str(error)))
        return []

    def fail(self, request: Request, error: Exception) -> None:
        """Whoever reads the generation is told; its blocks are free."""
        generation, stream = self.streams.get(request.call_id, (None, None))
        if generation is not None and stream is not None:
            generation.flush()
            stream.fail(error)
            self.forget(generation)

    def fail_all(self, error: Exception) -> None:
        for generation, _ in list(self.streams.values()):
            self.fail(generation, error)

    def forget_cancelled(self, request: Request) -> None:
        self.streams.pop(request.call_id, None)


def read_logprob(tokens: SampledTokens, place: int, num_top: int) -> TokenLogprob:
    pairs = zip(tokens.top_ids[place, :num_top].tolist(), tokens.top_logprobs[place, :num_top].tolist(), strict=True)
    return TokenLogprob(float(tokens.logprobs[place]), tuple(pair for pair in pairs if pair[0] != NO_TOKEN))


def cost_of_parts(parts: list[Part]) -> StepCost:
    """Attention costs by the pairs of new tokens and all tokens before them."""
    num_tokens = sum(part.num_tokens for part in parts)
    pairs = sum(part.num_tokens * (part.num_past_tokens + part.num_tokens) for part in parts)
    return StepCost(num_tokens, pairs)
