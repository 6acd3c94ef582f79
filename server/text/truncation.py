"""Truncation that reads no more of a text than it takes, and keeps exactly what reading all of it would keep.

A text is tokenised from the end that is kept up to some border between words, and further only where that was not
enough. The word next to the cut is not trusted all the same: some tokenizers treat the beginning or the end of a text
in their own way.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers

from server.errors import InputTooLong
from server.text.borders import Borders

TruncationSide = Literal["right", "left"]
"""The end that is cut off."""
Places = npt.NDArray[np.intp]

GROWTH = 4
"""By so much more is read where it was not enough: in all at most a third more than the whole text."""
WINDOW_CHARS = 4096
UNBROKEN_CHARS = 262_144
"""Longer texts are refused where half as many characters have no border between them: to know what is kept, all would
have to be read. So many take 1 s and 350 MB, if each is a token."""


class Head(NamedTuple):
    """The part of a text that is read. Its tokens from character `first` to `last` are the whole text's as well."""

    text: str
    is_whole: bool
    first: int
    last: int


def cut_text(text: str, reach: int, side: TruncationSide, borders: Borders) -> Head:
    """At most `reach` characters from the end that is kept, or more where there are no borders.

    Raises InputTooLong where there are none for UNBROKEN_CHARS.
    """
    assert reach > 0, "Nothing could be read. This is a bug."
    while len(text) > reach:
        # Near the cut there nearly always is a border, and to list all of half a megabyte takes time.
        for size in (min(WINDOW_CHARS, reach // 2), reach // 2):
            begin, end = (reach - size, reach) if side == "right" else (len(text) - reach, len(text) - reach + size)
            places = [found.end() for found in borders.pattern.finditer(text, begin, end)]
            head = cut_right(text, places, borders) if side == "right" else cut_left(text, places, borders)
            if head is not None:
                return head
        if reach >= UNBROKEN_CHARS:
            raise InputTooLong(
                f"has {len(text):,} characters, and {reach // 2:,} in a row without a break between words; shorten it"
            )
        reach = min(reach * GROWTH, UNBROKEN_CHARS)
    return take_whole(text)


def take_whole(text: str) -> Head:
    return Head(text, True, 0, len(text))


def cut_right(text: str, places: Sequence[int], borders: Borders) -> Head | None:
    """At the last border; the last one well before it is where trust ends."""
    if not places:
        return None
    num_trusted = bisect_right(places, places[-1] - max(borders.margin, 1))
    return Head(text[: places[-1]], False, 0, places[num_trusted - 1]) if num_trusted else None


def cut_left(text: str, places: Sequence[int], borders: Borders) -> Head | None:
    if not places:
        return None
    first = bisect_left(places, places[0] + max(borders.margin, 1))
    return Head(text[places[0] :], False, places[first] - places[0], len(text)) if first < len(places) else None


class Reading:
    """What the heads of one input, a text or a pair, were tokenised to. Immutable."""

    def __init__(self, encoding: tokenizers.Encoding, heads: Sequence[Head]) -> None:
        self._heads = heads
        owners: list[Any] = [-1 if owner is None else owner for owner in encoding.sequence_ids]
        self._owners = np.array(owners, dtype=np.int64)
        self._places = [np.flatnonzero(self._owners == owner) for owner in range(len(heads))]
        self._special = np.flatnonzero(self._owners < 0)
        self._certain = [self._find_certain(encoding, owner) for owner in range(len(heads))]

    def _find_certain(self, encoding: tokenizers.Encoding, owner: int) -> Places:
        """The places of tokens that the whole text has as well."""
        head, places = self._heads[owner], self._places[owner]
        if head.is_whole or not len(places):
            return places
        # Not `offsets`: a list of a tuple each takes longer than the rest, and nobody else runs meanwhile.
        first = bisect_left(places, head.first, key=lambda place: find_chars(encoding, place)[0])
        last = bisect_right(places, head.last, key=lambda place: find_chars(encoding, place)[1])
        return places[first:last]

    @property
    def is_whole(self) -> bool:
        return all(head.is_whole for head in self._heads)

    def count_certain(self) -> int:
        """So many tokens, special ones included, the whole input has at least; exact if the reading is whole."""
        return len(self._special) + sum(map(len, self._certain))

    def choose_tokens(self, max_tokens: int, side: TruncationSide, *, cuts_first: bool = False) -> Places | None:
        """Places of the tokens that truncation keeps. None where more must be read to know.

        `cuts_first`: of a pair the first text only. Raises InputTooLong where the second fills the limit by itself.
        """
        counts, budget = list(map(len, self._places)), max_tokens - len(self._special)
        kept = leave_second(counts, budget) if cuts_first else share_budget(counts, budget)
        if not self._is_enough(kept):
            return None
        chosen = [self._special]
        for places, num_kept in zip(self._places, kept, strict=True):
            chosen.append(places[:num_kept] if side == "right" else places[len(places) - num_kept :])
        return np.sort(np.concatenate(chosen))

    def _is_enough(self, kept: Sequence[int]) -> bool:
        """More tokens are certain than are kept, and a pair's longer text is known to be the longer one."""
        cut = [owner for owner, head in enumerate(self._heads) if not head.is_whole]
        if not cut:
            return True
        longest = cut[0]
        others = [len(places) for owner, places in enumerate(self._places) if owner != longest]
        return len(cut) == 1 and len(self._certain[longest]) > max(kept[longest], *others, 0)


def find_chars(encoding: tokenizers.Encoding, place: np.intp) -> tuple[int, int]:
    """The characters of a token that comes from a text, from the beginning of its own."""
    chars = encoding.token_to_chars(int(place))
    assert chars is not None, "special tokens come from no text, and have no owner"
    return chars


def leave_second(counts: Sequence[int], budget: int) -> list[int]:
    """As `share_budget`, by the strategy `only_first`. Raises InputTooLong."""
    second = counts[-1] if len(counts) > 1 else 0
    if second >= budget:
        raise InputTooLong(f"has {second} tokens in its second text alone, which is not cut; shorten it")
    return [min(counts[0], budget - second), *counts[1:]]


def share_budget(counts: Sequence[int], budget: int) -> list[int]:
    """Tokens to keep of a text, or of each of a pair: the longer one is cut first.

    As the strategy `longest_first` of tokenizers (truncate_encodings of its utils/truncation.rs) has it.
    """
    budget = max(budget, 0)
    if sum(counts) <= budget:
        return list(counts)
    if len(counts) == 1:
        return [budget]
    shorter = min(min(counts), budget // 2)
    return [budget - shorter, shorter] if counts[0] > counts[1] else [shorter, budget - shorter]
