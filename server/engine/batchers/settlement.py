"""What a step has computed becomes tokens of answers, and answers end, fork or go on. Pure."""

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runtime.batch import NO_TOKEN, SampledTokens
from server.engine.batchers.drafting import propose_drafts
from server.engine.batchers.feasibility import explain_no_token
from server.engine.batchers.part import Part
from server.engine.batchers.running_set import RunningSet
from server.engine.batchers.sampling_rows import Row
from server.engine.batchers.sequences import Generation, Sequence
from server.engine.batchers.sources import Weights
from server.errors import EngineFailure, Unservable
from server.wire.generation import TokenLogprob, pack_logprob

logger = logging.getLogger("padless.engine")

Fail = Callable[[Generation, Exception], None]
Candidates = dict[int, list[tuple[Sequence, int]]]
"""Of beam searches, by the id of their generation: each beam that was computed, and the place of its row."""
Told = dict[int, Weights]
"""What a step's tokens look at, by the id of their sequence; nothing where nobody asks."""


@dataclass(slots=True)
class Settlement:
    """`fail` is told of generations that cannot go on. `num_drafts`: the most tokens guessed ahead from what an answer
    has said before; 0: none. An engine's own drafts go before those. Mutable: the counts."""

    running: RunningSet
    fail: Fail
    num_drafts: int = 0
    num_drafted: int = 0
    num_accepted: int = 0

    def settle(self, parts: list[Part], rows: list[Row], tokens: SampledTokens, weights: list[Weights]) -> None:
        """Give each generation its tokens; `rows` as `list_rows` gives them, `weights` as `split_weights`."""
        first = 0
        candidates: Candidates = {}
        told = {id(part.sequence): each for part, each in zip(parts, weights, strict=False)}
        for part in parts:
            last = first
            while last < len(rows) and rows[last].part is part:
                last += 1
            if not part.generation.is_over:
                self.attempt(part.generation, self.advance, part, range(first, last), rows, tokens, candidates, told)
            first = last
        self.search(parts, candidates, tokens, told)

    def follow(self, parts: list[Part], tokens: SampledTokens | None) -> None:
        """One token more of each of these, which the device has computed by itself; row i is that of part i."""
        assert tokens is not None, "Decoders give tokens. This is a bug."
        for place, part in enumerate(parts):
            if part.sequence in part.generation.live and not part.generation.is_over:
                self.attempt(part.generation, self.take_next, part, place, tokens)

    def take_next(self, part: Part, place: int, tokens: SampledTokens) -> None:
        generation, sequence = part.generation, part.sequence
        if tokens.token_ids[place] == NO_TOKEN:
            self.fail(generation, explain_no_token(generation.params))
            return
        sequence.num_computed_tokens += 1
        if not self.append(generation, sequence, place, tokens):
            self.running.publish(generation, sequence)

    def attempt(self, generation: Generation, do: Callable[..., None], *arguments: object) -> None:
        """What goes wrong with one generation's tokens must not end its batch-mates."""
        try:
            do(*arguments)
        except Unservable as error:
            self.fail(generation, error)
        except Exception as error:
            logger.exception("the tokens of a generation could not be handed out")
            self.fail(generation, EngineFailure(f"{type(error).__name__}: {error}"))

    def advance(
        self, part: Part, places: range, rows: list[Row], tokens: SampledTokens, candidates: Candidates, told: Told
    ) -> None:
        """One sequence by what was computed of it; `places`: its rows."""
        generation, sequence = part.generation, part.sequence
        if generation.params.align_from is not None:
            generation.cross_weights.append(told[id(sequence)])
        sequence.num_computed_tokens += part.num_tokens - len(part.drafts)
        if part.encodes and generation.source is not None:
            self.running.note_encoded(generation.source, generation.salt)
        sequence.drafts = []
        drawn = [place for place in places if rows[place].forced_id == NO_TOKEN]
        for place in places:
            if rows[place].forced_id != NO_TOKEN:
                generation.prompt_logprobs.append(read_logprob(tokens, place, generation.params.num_prompt_top))
        if any(tokens.token_ids[place] == NO_TOKEN for place in places):
            self.fail(generation, explain_no_token(generation.params))
            return
        if part.is_complete_at(sequence.num_computed_tokens):
            self.go_on(part, drawn, tokens, candidates)
        self.running.publish(generation, sequence)
        if part.has_grown_again(sequence.num_computed_tokens):
            self.running.branch(generation)

    def go_on(self, part: Part, drawn: list[int], tokens: SampledTokens, candidates: Candidates) -> None:
        generation, sequence = part.generation, part.sequence
        if generation.params.max_tokens == 0:
            for index in range(generation.params.num_sequences):
                generation.tell(index, reason="length")
            self.running.drop(generation, sequence)
        elif generation.beams is not None:
            candidates.setdefault(id(generation), []).append((sequence, drawn[0]))
        elif not generation.has_forked:
            self.fork(generation, sequence, drawn, tokens)
        else:
            self.accept(part, drawn, tokens)

    def fork(self, generation: Generation, prompt: Sequence, drawn: list[int], tokens: SampledTokens) -> None:
        """The prompt is computed: its first tokens begin as many answers."""
        self.running.publish(generation, prompt)
        generation.has_forked = True
        generation.live += [self.running.fork(prompt, index) for index in range(1, len(drawn))]
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
            self.running.drop(generation, sequence)
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
        sequence.drafts = drafts[: max(0, generation.count_room(sequence))]

    def search(self, parts: list[Part], candidates: Candidates, tokens: SampledTokens, told: Told) -> None:
        """Beam searches: the beams choose together, once all of them have been computed."""
        for generation in list_generations(parts):
            ready = candidates.get(id(generation), [])
            if generation.beams is None or not ready or generation.is_over:
                continue
            if len(ready) < len(generation.live):
                for sequence, _ in ready:  # computed once more when the others are
                    sequence.num_computed_tokens = len(sequence.token_ids) - 1
                continue
            parents, places = [sequence for sequence, _ in ready], [place for _, place in ready]
            self.attempt(generation, self.choose_beams, generation, parents, places, tokens, told)

    def choose_beams(
        self, generation: Generation, parents: list[Sequence], places: list[int], tokens: SampledTokens, told: Told
    ) -> None:
        beams = generation.beams
        assert beams is not None
        width = beams.num_candidates
        weights = None
        if generation.params.coverage_penalty:  # of the one token of each, all heads on average
            weights = np.stack([told[id(parent)].mean(axis=(0, 1)) for parent in parents])
        going_on = beams.advance(tokens.top_ids[places, :width], tokens.top_logprobs[places, :width], weights)
        generation.has_forked = True
        # All blocks are with who goes on, before a grammar may say that nobody does.
        children = [self.running.fork(parents[each.parent], index) for index, each in enumerate(going_on)]
        self.running.replace(generation, parents, children)
        for sequence, continuation in zip(generation.live, going_on, strict=True):
            sequence.token_ids.append(continuation.token_id)
            if sequence.matcher is not None:
                sequence.matcher.accept(continuation.token_id)
        if beams.is_over:
            generation.tell_beams()


def list_generations(parts: list[Part]) -> list[Generation]:
    """Each once, in the order of their parts."""
    return list({id(part.generation): part.generation for part in parts}.values())


def read_logprob(tokens: SampledTokens, place: int, num_top: int) -> TokenLogprob:
    ids, logprobs = tokens.top_ids[place, :num_top], tokens.top_logprobs[place, :num_top]
    return pack_logprob(float(tokens.logprobs[place]), ids, logprobs)
