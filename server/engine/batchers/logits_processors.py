"""What logits processors mean for one row: tokens that are banned, or biased, or the only ones. Pure numpy.

The rules are those of transformers' `generation/logits_process.py`; where those write a logit, these say what is added
to it, so that a step handles all of its rows at once.
"""

import math
from array import array
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import assert_never

import numpy as np

from runtime.batch import IntArray
from server.wire.processors import (
    AllowedTokens,
    BadWords,
    ForcedBegin,
    ForcedEnd,
    LogitBias,
    MinTokens,
    NoRepeatNgrams,
    NoSourceNgrams,
    Processor,
    SuppressedAtBegin,
    SuppressedTokens,
    Timestamps,
)

Word = tuple[int, ...]
NO_END = 2**31 - 1
"""A vocabulary has no more tokens."""
NOTHING: IntArray = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Past:
    """What stands before a row: the tokens of prompt and answer, then the drafts that the row takes for granted.

    `max_new_tokens`: how many the answer may have; `stop_token_ids`: those that end it. `source_ids`: of an
    encoder-decoder's source of text.
    """

    token_ids: "array[int]"
    drafts: tuple[int, ...]
    num_prompt_tokens: int
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    source_ids: IntArray

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) + len(self.drafts) - self.num_prompt_tokens

    @property
    def last(self) -> int:
        return self.drafts[-1] if self.drafts else self.token_ids[-1]

    def read_last(self, count: int) -> Word:
        """At most so many, and all of the drafts."""
        return (*self.token_ids[-count:], *self.drafts)

    def read_from(self, place: int) -> IntArray:
        """All from the token number `place` on, which is none of the drafts."""
        return np.concatenate([np.array(self.token_ids[place:], np.int64), np.array(self.drafts, np.int64)])


@dataclass(slots=True)
class RowRules:
    """What all processors of a row say together. Mutable: grows by each of them.

    `ids`, `biases`: tokens, and what is added to their logits. `banned_ranges`: runs of banned tokens that are too long
    to be listed. `only`: the tokens one of which is forced. `timestamp_begin`: where Whisper's timestamps begin; 0: it
    has none. Lists, for a step makes one array of those of all rows: small arrays would take longer than their numbers.
    """

    ids: list[int] = field(default_factory=list)
    biases: list[float] = field(default_factory=list)
    banned_ranges: list[tuple[int, int]] = field(default_factory=list)
    only: tuple[int, ...] = ()
    timestamp_begin: int = 0

    def add(self, token_ids: Collection[int], values: Collection[float]) -> None:
        self.ids += token_ids
        self.biases += values

    def ban(self, token_ids: Collection[int]) -> None:
        self.add(token_ids, [-math.inf] * len(token_ids))

    def ban_range(self, first: int, end: int = NO_END) -> None:
        """The tokens from `first` on, up to and without `end`."""
        self.banned_ranges.append((first, end))


def collect_rules(processors: Iterable[Processor], past: Past) -> RowRules:
    """What the next token may be. Where it is forced, nothing else counts."""
    rules = RowRules()
    for processor in processors:
        apply(processor, past, rules)
    return RowRules(only=rules.only) if rules.only else rules


def apply(processor: Processor, past: Past, rules: RowRules) -> None:
    match processor:
        case LogitBias(token_ids, values):
            rules.add(token_ids, values)
        case BadWords(words):
            index = index_words(words)
            rules.ban(index.single)
            rules.ban(index.find_last_tokens(past))
        case MinTokens(count):
            if past.num_generated < count:
                rules.ban(past.stop_token_ids)
        case SuppressedTokens(token_ids):
            rules.ban(token_ids)
        case AllowedTokens(token_ids):
            for before, after in pairwise((-1, *token_ids, NO_END)):
                if before + 1 < after:
                    rules.ban_range(before + 1, after)
        case SuppressedAtBegin(token_ids, place):
            if past.num_generated == place:
                rules.ban(token_ids)
        case NoRepeatNgrams(size):
            rules.ban(find_continuations(past.read_from(0), past.read_from(0), size))
        case NoSourceNgrams(size):
            rules.ban(find_continuations(past.source_ids, past.read_from(0), size))
        case ForcedBegin(token_id):
            if past.num_generated == 0:
                rules.only = (token_id,)
        case ForcedEnd(token_ids):
            if past.num_generated == past.max_new_tokens - 1:
                rules.only = token_ids
        case Timestamps():
            apply_timestamps(processor, past.read_from(past.num_prompt_tokens), rules)
        case _:
            assert_never(processor)


def find_continuations(known_ids: IntArray, token_ids: IntArray, size: int) -> set[int]:
    """The tokens that would make the last `size` - 1 of `token_ids`, and themselves, a run that is in `known_ids`."""
    if len(token_ids) < size - 1:
        return set()
    ends = np.arange(size - 1, len(known_ids))
    for offset, token_id in enumerate(token_ids[:-size:-1], start=1):
        ends = ends[known_ids[ends - offset] == token_id]
    return set(known_ids[ends].tolist())


def apply_timestamps(processor: Timestamps, generated: IntArray, rules: RowRules) -> None:
    begin = processor.begin_id
    is_timestamp = generated >= begin
    is_open = len(generated) > 1 and bool(is_timestamp[-1] and not is_timestamp[-2])
    rules.ban([processor.no_timestamps_id])
    rules.timestamp_begin = begin
    if not len(generated):
        rules.ban_range(0, begin)
        if processor.max_initial_index is not None:
            rules.ban_range(begin + processor.max_initial_index + 1)
    elif is_open:
        rules.ban_range(0, processor.end_id)
    elif is_timestamp[-1]:
        rules.ban_range(begin)
    if is_timestamp.any():
        newest = int(generated[is_timestamp][-1])
        # What closes a pair may be the same time again, what opens the next one must not.
        rules.ban_range(begin, newest if is_open else newest + 1)


@dataclass(frozen=True, slots=True)
class WordIndex:
    """Words that are looked at only where they could come next. `single`: those of one token. `longer`: the others by
    their last token but one, as (all but the last, the last)."""

    single: list[int]
    longer: dict[int, list[tuple[Word, int]]]

    def find_last_tokens(self, past: Past) -> list[int]:
        """The last tokens of those longer words whose others stand at the end."""
        candidates = self.longer.get(past.last, ())
        if not candidates:
            return []
        tail = past.read_last(max(len(start) for start, _ in candidates))
        return [last for start, last in candidates if tail[-len(start) :] == start]


@lru_cache(maxsize=256)
def index_words(words: tuple[Word, ...]) -> WordIndex:
    """Remembered: every step of a generation asks for the same ones."""
    longer: dict[int, list[tuple[Word, int]]] = {}
    for word in words:
        if len(word) > 1:
            longer.setdefault(word[-2], []).append((word[:-1], word[-1]))
    return WordIndex([word[0] for word in words if len(word) == 1], longer)
