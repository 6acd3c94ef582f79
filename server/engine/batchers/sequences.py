"""A prompt whose answers are computed over many steps: which are under way, and what becomes of each new token. Pure.

A generation begins with one sequence, the prompt. Once that is computed it is forked into as many as answers are
wanted, or into beams; forks share the blocks of what they have in common. A sequence's newest token is known but not
computed yet: computing it gives the next one.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from runtime.kv_cache.blocks import BLOCK_SIZE, BlockHash, BlockTable, count_blocks
from server.engine.batchers.beam_search import BeamSearch
from server.engine.batchers.counters import Counter
from server.engine.batchers.diverse_beams import DiverseBeamSearch
from server.engine.batchers.matcher import Matcher
from server.engine.batchers.sources import Source, Weights
from server.wire.generation import AnswerNews, FinishReason, GenerationParams, TokenLogprob


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer under way, or one beam. Mutable: all but `index`.

    `token_ids`: the prompt and what has been generated, as 64-bit numbers, which numpy takes in at once.
    `num_computed_tokens`: of these, how many have their keys and values in the cache. `drafts`: guesses of what
    follows, to be checked in the next step.
    """

    index: int
    token_ids: "array[int]"
    table: BlockTable = field(default_factory=BlockTable)
    num_computed_tokens: int = 0
    drafts: list[int] = field(default_factory=list)
    matcher: Matcher | None = None
    counter: Counter | None = None
    """Where an engine counts its tokens, for penalties."""
    hashes: list[BlockHash] = field(default_factory=list)
    """Of its first blocks, as far as anybody has asked for them."""

    @property
    def num_remaining_tokens(self) -> int:
        """Known and not computed."""
        return len(self.token_ids) - self.num_computed_tokens


@dataclass(slots=True, eq=False)
class Generation:
    """Mutable: the sequences that still run, and how far they are. `emit` gets the news of each step.

    `place`: its order among others. `seed`: of its random numbers. `salt`: whose prefixes it may share. `source`: what
    it is an answer to, of encoder-decoders.
    """

    prompt: list[int]
    params: GenerationParams
    place: tuple[int, float, int, int]
    deadline_s: float
    max_total_tokens: int = 1 << 30
    """Of prompt and answer; the model's limit."""
    seed: int = 0
    salt: str = ""
    emit: Callable[[list[AnswerNews]], None] = lambda news: None
    source: Source | None = None
    live: list[Sequence] = field(default_factory=list)
    branches: list[Sequence] = field(default_factory=list)
    """Answers that have lost their blocks: they go on once their prompt, now alone in `live`, is computed again."""
    beams: BeamSearch | DiverseBeamSearch | None = None
    has_forked: bool = False
    num_cached_tokens: int = 0
    """Of the prompt, found in the prefix cache at its first admission."""
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    cross_weights: list[Weights] = field(default_factory=list)
    """Of the prompt's tokens that are asked about, as far as they are computed."""
    news: dict[int, AnswerNews] = field(default_factory=dict)
    """Of this step, by answer."""
    has_told: bool = False
    stopped: set[int] = field(default_factory=set)
    """Answers of which nobody wants to hear any more."""
    num_preemptions: int = 0
    is_over: bool = False
    """It has given up its blocks for good; what a step under way computes of it means nothing."""
    is_plain: bool = field(init=False)
    """What is asked of each token is the same, whatever stands before it."""

    def __post_init__(self) -> None:
        self.live = [Sequence(0, array("q", self.prompt))]
        if self.params.beam_width:
            self.beams = self.build_beams()
        self.is_plain = asks_the_same(self.params)

    def build_beams(self) -> BeamSearch | DiverseBeamSearch:
        params = self.params
        groups = [
            BeamSearch(
                params.beam_width // params.beam_groups,
                params.length_penalty,
                params.early_stopping,
                frozenset(params.stop_token_ids),
                self.max_new_tokens,
                params.coverage_penalty,
            )
            for _ in range(params.beam_groups)
        ]
        return groups[0] if len(groups) == 1 else DiverseBeamSearch(groups, params.diversity_penalty)

    @property
    def priority(self) -> int:
        return self.place[0]

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt)

    @property
    def max_new_tokens(self) -> int:
        return min(self.params.max_tokens, self.max_total_tokens - self.num_prompt_tokens)

    @property
    def num_tokens(self) -> int:
        """Known, of all sequences and the source: what is to be computed of who waits, but for what the cache has."""
        own = sum(len(sequence.token_ids) for sequence in self.live)
        return own if self.source is None else own + self.source.num_tokens

    @property
    def num_source_tokens(self) -> int:
        """That are still to be encoded."""
        return 0 if self.source is None or self.source.is_encoded else self.source.num_tokens

    @property
    def tables(self) -> list[BlockTable]:
        """All that it holds blocks by."""
        own = [sequence.table for sequence in self.live]
        return own if self.source is None else [*own, self.source.table]

    @property
    def num_rows(self) -> int:
        """Most sequences it will ever have at one time."""
        return self.params.num_rows

    @property
    def is_decoding(self) -> bool:
        """Every sequence waits for its next token only."""
        return self.has_forked and not self.branches and all(each.num_remaining_tokens == 1 for each in self.live)

    @property
    def asked_places(self) -> range:
        """The prompt's tokens behind which a logprob is wanted."""
        if self.params.probe is not None:
            return range(self.params.probe[0], self.params.probe[0] + 1)
        return range(self.num_prompt_tokens - 1 if self.params.num_prompt_logprobs >= 0 else 0)

    def find_asked(self, place: int) -> int:
        """The token whose logprob behind the prompt's token `place` is wanted."""
        return self.prompt[place + 1] if self.params.probe is None else self.params.probe[1]

    @property
    def num_missing_prompt_logprobs(self) -> int:
        return 0 if self.has_forked else len(self.asked_places) - len(self.prompt_logprobs)

    @property
    def num_missing_blocks(self) -> int:
        """For its known tokens and one more of each sequence, and for its source, beyond those it has. Branches share
        the prompt's. A block that a run was promised and has not reached (`continuation`) is one less for who decodes:
        that is the one more which is promised to everybody."""
        missing = 0 if self.source is None else self.source.num_missing_blocks
        for sequence in self.live:
            missing += max(-1, count_blocks(len(sequence.token_ids) + 1) - len(sequence.table.block_ids))
        shared = self.num_prompt_tokens // BLOCK_SIZE
        return missing + sum(count_blocks(len(branch.token_ids) + 1) - shared for branch in self.branches)

    def count_generated(self, sequence: Sequence) -> int:
        return len(sequence.token_ids) - self.num_prompt_tokens

    def count_room(self, sequence: Sequence) -> int:
        """Tokens that are wanted behind the next."""
        return self.max_new_tokens - self.count_generated(sequence) - 1

    def fold(self) -> None:
        """All blocks are lost. Several answers become branches of their prompt, so that it is computed once."""
        if self.has_forked and len(self.live) > 1:
            self.branches, self.live = self.live, [Sequence(0, array("q", self.prompt))]

    def append(self, sequence: Sequence, token_id: int, logprob: TokenLogprob | None) -> FinishReason:
        """One more token of an answer. Says why the answer has ended, or ''."""
        sequence.token_ids.append(token_id)
        num_generated = self.count_generated(sequence)
        reason: FinishReason = ""
        if token_id in self.params.stop_token_ids:
            reason = "stop"
        elif num_generated >= self.max_new_tokens:
            reason = "length"
        self.tell(sequence.index, (token_id,), () if logprob is None else (logprob,), reason)
        return reason

    def tell(
        self,
        index: int,
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
        reason: FinishReason = "",
        score: float | None = None,
    ) -> None:
        """Add to this step's news."""
        if index not in self.stopped:
            last = self.news.get(index)
            if last is not None:
                token_ids, logprobs = last.token_ids + token_ids, last.logprobs + logprobs
            self.news[index] = AnswerNews(index, token_ids, logprobs, reason, score=score)

    def tell_beams(self) -> None:
        """Give out the best answers of a beam search that is over."""
        assert self.beams is not None
        finished = self.beams.finished[: self.params.num_sequences]
        for index, hypothesis in enumerate(finished):
            has_stopped = hypothesis.token_ids[-1] in self.params.stop_token_ids
            logprobs = tuple(TokenLogprob(value) for value in hypothesis.logprobs)
            wanted = logprobs if self.params.num_logprobs >= 0 else ()
            reason: FinishReason = "stop" if has_stopped else "length"
            self.tell(index, hypothesis.token_ids, wanted, reason, float(hypothesis.score))
        for index in range(len(finished), self.params.num_sequences):
            self.tell(index, reason="stop")  # a grammar may allow fewer answers than were asked for

    def flush(self) -> None:
        """Hand this step's news over; the first also say what there is to say of the prompt."""
        if not self.news:
            return
        news, self.news = list(self.news.values()), {}
        if not self.has_told:
            self.has_told = True
            prompt_logprobs = tuple(self.prompt_logprobs)
            weights = np.concatenate(self.cross_weights) if self.cross_weights else None
            news[0] = replace(
                news[0],
                num_cached_tokens=self.num_cached_tokens,
                prompt_logprobs=prompt_logprobs,
                cross_weights=weights,
            )
        self.emit(news)


def asks_the_same(params: GenerationParams) -> bool:
    """Of each token, whatever stands before it."""
    penalties = params.repetition_penalty - 1, params.presence_penalty, params.frequency_penalty
    return not (
        params.processors or params.beam_width or params.grammar[0] or params.align_from is not None or any(penalties)
    )
