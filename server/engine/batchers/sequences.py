"""A request whose tokens are computed over many steps: its answers under way, and what becomes of each new token. Pure.

A generation begins with one sequence, the prompt. Once that is computed it is forked into as many as answers are
wanted, or into beams; forks share the blocks of what they have in common. A sequence's newest token is known but not
computed yet: computing it gives the next one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from runtime.kv_cache.blocks import BlockHash, BlockTable
from server.engine.batchers.beam_search import BeamSearch
from server.wire.job import FinishReason, GenerationEvent, GenerationParams, Request, TokenLogprob


class Matcher(Protocol):
    """How far an answer has followed its grammar."""

    def compute_mask(self) -> npt.NDArray[np.uint32]:
        """The tokens that may come next, as in `TokenMasks`."""

    def accept(self, token_id: int) -> None: ...

    def fork(self) -> "Matcher": ...


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer under way, or one beam. Mutable: all but `index`.

    `token_ids`: the prompt and what has been generated. `num_computed_tokens`: of these, how many have their keys and
    values in the cache. `drafts`: guesses of what follows, to be checked in the next step.
    """

    index: int
    token_ids: list[int]
    table: BlockTable = field(default_factory=BlockTable)
    num_computed_tokens: int = 0
    drafts: list[int] = field(default_factory=list)
    matcher: Matcher | None = None
    hashes: list[BlockHash] = field(default_factory=list)
    """Of its first blocks, as far as anybody has asked for them."""

    @property
    def num_remaining_tokens(self) -> int:
        """Known and not computed."""
        return len(self.token_ids) - self.num_computed_tokens


@dataclass(slots=True, eq=False)
class Generation(Request):
    """Mutable: the sequences that still run, and how far they are. `emit` gets the news of each step."""

    params: GenerationParams = field(default_factory=lambda: GenerationParams(1))
    emit: Callable[[list[GenerationEvent]], None] = lambda events: None
    max_total_tokens: int = 1 << 30
    """Of prompt and answer; the model's limit."""
    live: list[Sequence] = field(default_factory=list)
    beams: BeamSearch | None = None
    has_forked: bool = False
    num_cached_tokens: int = 0
    """Of the prompt, found in the prefix cache at its first admission."""
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    news: dict[int, GenerationEvent] = field(default_factory=dict)
    """Of this step, by answer."""
    has_told: bool = False
    stopped: set[int] = field(default_factory=set)
    """Answers of which nobody wants to hear any more."""
    num_preemptions: int = 0

    def __post_init__(self) -> None:
        self.priority = self.params.priority
        self.live = [Sequence(0, self.sequence.input_ids.tolist())]
        if self.params.beam_width:
            self.beams = BeamSearch(
                self.params.beam_width,
                self.params.length_penalty,
                self.params.early_stopping,
                frozenset(self.params.stop_token_ids),
                self.max_new_tokens,
            )

    @property
    def num_prompt_tokens(self) -> int:
        return self.sequence.num_tokens

    @property
    def max_new_tokens(self) -> int:
        return min(self.params.max_tokens, self.max_total_tokens - self.num_prompt_tokens)

    @property
    def num_tokens(self) -> int:
        """Known and not computed, of all sequences."""
        return sum(sequence.num_remaining_tokens for sequence in self.live)

    @property
    def num_rows(self) -> int:
        """Most sequences it will ever have at one time."""
        return max(self.params.num_sequences, self.params.beam_width, 1)

    @property
    def is_decoding(self) -> bool:
        """Every sequence waits for its next token only."""
        return self.has_forked and all(sequence.num_remaining_tokens == 1 for sequence in self.live)

    @property
    def num_missing_prompt_logprobs(self) -> int:
        if self.params.num_prompt_logprobs < 0 or self.has_forked:
            return 0
        return self.num_prompt_tokens - 1 - len(self.prompt_logprobs)

    @property
    def place(self) -> tuple[int, float, int]:
        """Its order among others: priority, then deadline, then arrival."""
        return (self.priority, self.virtual_deadline_s, self.queue_number)

    def count_generated(self, sequence: Sequence) -> int:
        return len(sequence.token_ids) - self.num_prompt_tokens

    def append(self, sequence: Sequence, token_id: int, logprob: TokenLogprob | None) -> FinishReason:
        """One more token of an answer. Says why the answer has ended, or ''."""
        sequence.token_ids.append(token_id)
        num_generated = self.count_generated(sequence)
        reason: FinishReason = ""
        if token_id in self.params.stop_token_ids and num_generated >= self.params.min_tokens:
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
    ) -> None:
        """Add to this step's news."""
        if index not in self.stopped:
            last = self.news.get(index, GenerationEvent(index))
            self.news[index] = GenerationEvent(index, last.token_ids + token_ids, last.logprobs + logprobs, reason)

    def tell_beams(self) -> None:
        """Give out the best answers of a beam search that is over."""
        assert self.beams is not None
        for index, hypothesis in enumerate(self.beams.finished[: self.params.num_sequences]):
            has_stopped = hypothesis.token_ids[-1] in self.params.stop_token_ids
            logprobs = tuple(TokenLogprob(value) for value in hypothesis.logprobs)
            wanted = logprobs if self.params.num_logprobs >= 0 else ()
            self.tell(index, hypothesis.token_ids, wanted, "stop" if has_stopped else "length")
        for index in range(len(self.beams.finished), self.params.num_sequences):
            self.tell(index, reason="stop")  # a grammar may allow fewer answers than were asked for

    def flush(self) -> None:
        """Hand this step's news over; the first also say what there is to say of the prompt."""
        if not self.news:
            return
        events, self.news = list(self.news.values()), {}
        if not self.has_told:
            self.has_told = True
            prompt_logprobs = tuple(self.prompt_logprobs)
            events[0] = replace(events[0], num_cached_tokens=self.num_cached_tokens, prompt_logprobs=prompt_logprobs)
        self.emit(events)


def draw_uniforms(seeds: list[int], indices: list[int], positions: list[int]) -> npt.NDArray[np.float64]:
    """Random numbers in [0, 1): one for each (seed, answer, how many tokens it has), the same each time.

    Rounds of SplitMix64's finaliser (Steele et al., 2014) over the three numbers: no state that batch-mates, preemption
    or the order of steps could disturb.
    """
    state = np.zeros(len(seeds), np.uint64)
    with np.errstate(over="ignore"):
        for numbers in (seeds, indices, positions):
            words = np.array([number & 0xFFFFFFFFFFFFFFFF for number in numbers], np.uint64)
            state = (state ^ words) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
