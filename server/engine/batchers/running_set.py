"""The generations that hold blocks of the KV cache: which of their tokens go into a step, and who must give way. Pure.

In the order of their places, those that wait for their next token come first: a step for each of them is what keeps
answers flowing. Prompts get what is left of the budget, in chunks while anybody waits for a next token. Where blocks
run out, the last in order gives up all of its own and goes back to the queue; it is computed again later, mostly from
blocks that the prefix cache has kept (Yu et al., 2022: Orca; Kwon et al., 2023; Agrawal et al., 2024: chunked prefill).
"""

from dataclasses import dataclass, field

from runtime.kv_cache.blocks import BlockAllocator
from server.engine.batchers.part import Part
from server.engine.batchers.sequences import Generation, Sequence
from server.engine.batchers.sources import Source


@dataclass(slots=True)
class StepBudget:
    """What is left of a step. Mutable."""

    num_tokens: int
    num_sequences: int
    num_logits: int
    has_sources: bool = False

    def has_room(self, generation: Generation) -> bool:
        """For something of it. Its source is encoded whole, and beside others if there is room for all: the first one
        of a step always has, so that no source waits for ever for those who are decoding."""
        if self.num_tokens <= 0:
            return False
        return not self.has_sources or generation.num_source_tokens < self.num_tokens


@dataclass(slots=True)
class GenerationPlan:
    """What a step does for generations. Mutable: grows while the step is formed."""

    parts: list[Part] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[Generation] = field(default_factory=list)
    starved: list[Generation] = field(default_factory=list)
    """Nobody else holds blocks, and still they do not suffice."""


@dataclass(slots=True)
class RunningSet:
    """Mutable: the generations, and through them the allocator's blocks.

    `prefill_chunk_tokens`: the most prompt tokens of a step while others wait for their next token; 0: no limit.
    """

    allocator: BlockAllocator
    prefill_chunk_tokens: int = 0
    lookahead_tokens: int = 0
    """Slots that a draft model needs behind those of the step."""
    generations: list[Generation] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    """Of all prompts and sources so far, looked up and found in the prefix cache."""

    @property
    def num_sequences(self) -> int:
        return sum(generation.num_rows for generation in self.generations)

    def advance(self, budget: StepBudget, plan: GenerationPlan) -> None:
        """Give every generation that already holds blocks its share of the step."""
        order = sorted(self.generations, key=lambda generation: generation.place)
        for generation in order:
            if generation.is_decoding and generation in self.generations:
                self.decode(generation, budget, plan)
        for generation in order:
            if not generation.is_decoding and generation in self.generations:
                self.prefill(generation, budget, plan)

    def decode(self, generation: Generation, budget: StepBudget, plan: GenerationPlan) -> None:
        """One token of each sequence, all or none, and drafts where there is room left."""
        if len(generation.live) > min(budget.num_tokens, budget.num_logits):
            return
        for sequence in generation.live:
            spare = min(budget.num_tokens, budget.num_logits) - len(generation.live)
            drafts = tuple(sequence.drafts[: max(spare, 0)])
            if drafts and not self.has_blocks(sequence, 1 + len(drafts)):
                drafts = ()  # nobody has to give way for a guess
            if not self.reserve(generation, sequence, 1 + len(drafts), plan):
                self.give_up(generation, plan)
                return
            past = sequence.num_computed_tokens
            self.add_part(Part(generation, sequence, past, 1 + len(drafts), drafts), budget, plan)

    def prefill(self, generation: Generation, budget: StepBudget, plan: GenerationPlan) -> None:
        """As much of what is known and not computed as the step has room for."""
        if not budget.has_room(generation):
            return
        for sequence in generation.live:
            num_tokens = min(sequence.num_remaining_tokens, self.count_prefill(budget, plan))
            num_rows = 1 if generation.has_forked else generation.num_rows
            num_prompt_rows = count_prompt_rows(generation, sequence, num_tokens)
            if num_prompt_rows and num_prompt_rows + num_rows > budget.num_logits:
                num_prompt_rows = num_tokens = max(budget.num_logits - num_rows, 0)
            if num_rows > budget.num_logits or num_tokens <= 0:
                return
            if not self.reserve(generation, sequence, num_tokens, plan):
                if len(self.generations) == 1:
                    self.give_up(generation, plan)
                return
            past, encodes = sequence.num_computed_tokens, generation.num_source_tokens > 0
            self.add_part(Part(generation, sequence, past, num_tokens, (), num_prompt_rows, encodes), budget, plan)

    def count_prefill(self, budget: StepBudget, plan: GenerationPlan) -> int:
        waiting = [part for part in plan.parts if part.generation.is_decoding]
        if not waiting or not self.prefill_chunk_tokens:
            return budget.num_tokens
        taken = sum(part.num_tokens for part in plan.parts if not part.generation.is_decoding)
        return min(budget.num_tokens, self.prefill_chunk_tokens - taken)

    def add_part(self, part: Part, budget: StepBudget, plan: GenerationPlan) -> None:
        plan.parts.append(part)
        budget.num_tokens -= part.num_tokens
        if part.encodes:
            budget.num_tokens -= part.generation.num_source_tokens
            budget.has_sources = True
        budget.num_logits -= part.num_prompt_rows + 1 + len(part.drafts)
        if not part.generation.has_forked:
            budget.num_logits -= part.generation.num_rows - 1

    def reserve(self, generation: Generation, sequence: Sequence, num_tokens: int, plan: GenerationPlan) -> bool:
        """Blocks for the next `num_tokens` of a sequence, taken from those behind it where need be; and for a draft
        model's guesses, if they are to be had without."""
        first = sequence.num_computed_tokens
        last = first + num_tokens
        ahead = min(last + self.lookahead_tokens, max(generation.max_total_tokens, last))
        if not self.allocator.count_needed(sequence.table, first, ahead):
            return True  # so it is for most tokens of an answer
        if self.has_blocks(sequence, ahead - first):
            last = ahead
        while not self.has_blocks(sequence, last - first):
            victim = self.find_victim(generation, plan)
            if victim is None:
                return False
            self.preempt(victim, plan)
        plan.copies += self.allocator.grow(sequence.table, first, last)
        return True

    def reserve_ahead(self, wanted: list[tuple[Sequence, int]]) -> bool:
        """Blocks for so many tokens behind the next of each sequence, whose own is there: for all or for none, and
        nobody has to give way."""
        ends = [
            (each.table, each.num_computed_tokens + 1, each.num_computed_tokens + 1 + more) for each, more in wanted
        ]
        if sum(self.allocator.count_needed(*each) for each in ends) > self.allocator.num_free_blocks:
            return False
        for each in ends:
            copies = self.allocator.grow(*each)
            assert not copies, "Blocks behind the next token are nobody else's. This is a bug."
        return True

    def has_blocks(self, sequence: Sequence, num_tokens: int) -> bool:
        """Whether the next `num_tokens` of a sequence fit without anybody giving way."""
        first = sequence.num_computed_tokens
        needed = self.allocator.count_needed(sequence.table, first, first + num_tokens)
        return needed <= self.allocator.num_free_blocks

    def find_victim(self, generation: Generation, plan: GenerationPlan) -> Generation | None:
        """The last in order behind `generation` that holds blocks and has no part in this step yet."""
        busy = {id(part.generation) for part in plan.parts}
        behind = [
            other
            for other in self.generations
            if other.place > generation.place and id(other) not in busy and holds_blocks(other)
        ]
        return max(behind, key=lambda other: other.place, default=None)

    def list_less_urgent(self, generation: Generation) -> list[Generation]:
        """Those of a lower priority, the last in order first."""
        others = [other for other in self.generations if other.priority > generation.priority]
        return sorted(others, key=lambda other: other.place, reverse=True)

    def would_fit(self, generation: Generation, num_sequences: int, victims: list[Generation]) -> bool:
        """Whether `generation` could be admitted in the place of `victims`, where a step has room for so many sequences
        without them. Its prompt's beginning may be in the cache: this is the most that it needs."""
        staying = [other for other in self.generations if other not in victims]
        promised = sum(other.num_missing_blocks + other.num_rows for other in staying)
        freed = self.allocator.count_freed([table for victim in victims for table in victim.tables])
        free = self.allocator.num_free_blocks + freed
        room = num_sequences + sum(victim.num_rows for victim in victims)
        return generation.num_rows <= room and generation.num_missing_blocks + promised <= free

    def give_up(self, generation: Generation, plan: GenerationPlan) -> None:
        """No blocks are to be had: back to the queue, or to its end if nobody else could ever free any."""
        is_alone = len(self.generations) == 1
        self.preempt(generation, plan)
        if is_alone:
            plan.starved.append(plan.preempted.pop())

    def preempt(self, generation: Generation, plan: GenerationPlan) -> None:
        """Take all blocks of a generation; the scheduler puts it back into the queue."""
        own = {block for sequence in generation.live for block in sequence.table.block_ids}
        plan.parts = [part for part in plan.parts if part.generation is not generation]
        plan.copies = [copy for copy in plan.copies if copy[1] not in own]
        self.release(generation)
        generation.fold()
        generation.num_preemptions += 1
        plan.preempted.append(generation)

    def release(self, generation: Generation) -> None:
        """Give up everything it holds."""
        for sequence in generation.live:
            self.allocator.release(sequence.table)
            sequence.num_computed_tokens = 0
            sequence.drafts = []
        if generation.source is not None:
            self.allocator.release(generation.source.table)
            generation.source.is_encoded = False
        if generation.num_missing_prompt_logprobs:
            generation.prompt_logprobs.clear()
        generation.cross_weights.clear()
        self.generations.remove(generation)

    def admit(self, generation: Generation) -> bool:
        """Take a generation in, if there are blocks for all that is known of it; its prompt's beginning may be here.
        Its source gets its own at once."""
        source = generation.source
        if source is not None and self.allocator.has_prefix_cache:
            source.table = self.allocator.find_whole(source.list_hashes(generation.salt))
            source.is_encoded = bool(source.table.block_ids)
        for sequence in generation.live:
            if source is None and not generation.num_missing_prompt_logprobs:
                sequence.table = self.allocator.find_prefix(sequence.token_ids, sequence.hashes, generation.salt)
            sequence.num_computed_tokens = sequence.table.num_slots
        # What the others still need for what is known of them is promised, and one block more for each, so that they do
        # not push the newcomer out again at once.
        promised = sum(other.num_missing_blocks for other in self.generations) + self.num_sequences
        self.generations.append(generation)
        if generation.num_missing_blocks + promised > self.allocator.num_free_blocks:
            self.release(generation)
            return False
        if source is not None and not source.is_encoded:
            self.allocator.grow(source.table, 0, source.num_tokens)
        if generation.num_preemptions == 0:
            generation.num_cached_tokens = generation.live[0].num_computed_tokens
            self.count_prompt(generation)
        return True

    def count_prompt(self, generation: Generation) -> None:
        self.num_prompt_tokens += generation.num_prompt_tokens
        self.num_cached_tokens += generation.num_cached_tokens
        if generation.source is not None:
            num_tokens = generation.source.num_tokens
            self.num_prompt_tokens += num_tokens
            self.num_cached_tokens += num_tokens if generation.source.is_encoded else 0

    def fork(self, parent: Sequence, index: int) -> Sequence:
        """A second sequence that goes on from where `parent` is, sharing its blocks."""
        return Sequence(
            index=index,
            token_ids=parent.token_ids[:],
            table=self.allocator.fork(parent.table),
            num_computed_tokens=parent.num_computed_tokens,
            matcher=None if parent.matcher is None else parent.matcher.fork(),
            hashes=list(parent.hashes),
        )

    def branch(self, generation: Generation) -> None:
        """The prompt is there again: the answers that had lost their blocks go on from it."""
        (prompt,) = generation.live
        for branch in generation.branches:
            branch.table = self.allocator.fork(prompt.table)
            branch.num_computed_tokens = prompt.num_computed_tokens
        self.allocator.release(prompt.table)
        generation.live, generation.branches = generation.branches, []

    def publish(self, generation: Generation, sequence: Sequence) -> None:
        """Let others find what is computed; nothing if the sequence has given up its blocks meanwhile. Answers that
        begin alike have nothing in common where they are answers to different sources."""
        if sequence.table.block_ids and generation.source is None:
            computed = sequence.num_computed_tokens
            self.allocator.publish(sequence.table, sequence.token_ids, computed, sequence.hashes, generation.salt)

    def note_encoded(self, source: Source, salt: str) -> None:
        """A step has computed it: its answers can go on, and others with the same source find it."""
        source.is_encoded = True
        if source.table.block_ids and self.allocator.has_prefix_cache:
            self.allocator.publish_whole(source.table, source.list_hashes(salt))

    def drop(self, generation: Generation, sequence: Sequence) -> None:
        """An answer has ended: its blocks are free, and what is in them may still be found."""
        self.publish(generation, sequence)
        self.allocator.release(sequence.table)
        generation.live.remove(sequence)

    def replace(self, generation: Generation, parents: list[Sequence], children: list[Sequence]) -> None:
        """Beams that go on take the place of those they come from."""
        generation.live = children
        for parent in parents:
            self.allocator.release(parent.table)

    def check(self) -> None:
        """Every block is free or held by somebody we know. Raises AssertionError."""
        self.allocator.check()
        assert self.generations or not self.allocator.num_used_blocks, "Blocks are held by nobody."


def count_prompt_rows(generation: Generation, sequence: Sequence, num_tokens: int) -> int:
    """How many of its next tokens have a logprob of the prompt to tell: that of a token behind them."""
    if not generation.num_missing_prompt_logprobs:
        return 0
    asked, computed = generation.asked_places, sequence.num_computed_tokens
    return max(0, min(computed + num_tokens, asked.stop) - max(computed, asked.start))


def holds_blocks(generation: Generation) -> bool:
    return any(table.block_ids for table in generation.tables)
