"""Truncation that reads no more of a text than it takes, and keeps exactly what reading all of it would keep.

A text is tokenised from the end that is kept up to some border between words, and further only where that was not
enough. A border is safe where no token of the vocabulary crosses it: what stands before it and what stands behind it
are then tokenised independently. The word next to the cut is not trusted all the same: some tokenizers treat the
beginning or the end of a text in their own way.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers

from server.text.detokenizer import find_raw_bytes

Side = Literal["right", "left"]
"""The end that is cut off."""
Places = npt.NDArray[np.intp]

GROWTH = 4
"""By so much more is read where it was not enough: in all at most a third more than the whole text."""
BORDER = re.compile(r"\w ")
CROSSING = re.compile(r"\S ")
WORDS = "a 1 . a"
BLANKS = "Ġ▁ "
"""How vocabularies write a blank: byte-level ones, SentencePiece's and the rest."""


class Head(NamedTuple):
    """The part of a text that is read. Its tokens from character `first` to `last` are the whole text's as well."""

    text: str
    is_whole: bool
    first: int
    last: int


def cut_text(text: str, reach: int, side: Side) -> Head:
    """At most `reach` characters from the end that is kept, or more where there are no borders between words."""
    if len(text) <= reach:
        return Head(text, True, 0, len(text))
    begin, end = (reach // 2, reach) if side == "right" else (len(text) - reach, len(text) - reach // 2)
    borders = [found.end() - 1 for found in BORDER.finditer(text, begin, end)]
    if len(borders) < 2:
        return cut_text(text, reach * GROWTH, side)
    if side == "right":
        return Head(text[: borders[-1]], False, 0, borders[-2])
    return Head(text[borders[0] :], False, borders[1] - borders[0], len(text) - borders[0])


def has_borders(plain: tokenizers.Tokenizer) -> bool:
    """Whether blanks after words are borders: no token reaches across, and words are looked at by themselves."""
    return is_word_by_word(plain) and not any(crosses_words(token) for token in plain.get_vocab())


def is_word_by_word(plain: tokenizers.Tokenizer) -> bool:
    """Merges and the best path of BPE and Unigram are as local as their tokens; other models need words cut out."""
    if isinstance(plain.model, tokenizers.models.BPE | tokenizers.models.Unigram):
        return True
    splitter = plain.pre_tokenizer
    return splitter is not None and len(splitter.pre_tokenize_str(WORDS)) == len(WORDS.split())


def crosses_words(token: str) -> bool:
    """Whether a token has a blank after something that is none."""
    if not any(blank in token[1:] for blank in BLANKS):
        return False
    text = find_raw_bytes(token).decode(errors="replace") or token.replace("▁", " ")
    return CROSSING.search(text) is not None


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
        starts, stops = np.array(encoding.offsets, dtype=np.int64)[places].T
        is_certain: npt.NDArray[np.bool_] = (starts >= head.first) & (stops <= head.last)
        certain: Places = places[is_certain]
        return certain

    @property
    def is_whole(self) -> bool:
        return all(head.is_whole for head in self._heads)

    def count_certain(self) -> int:
        """So many tokens, special ones included, the whole input has at least; exact if the reading is whole."""
        return len(self._special) + sum(map(len, self._certain))

    def choose_tokens(self, max_tokens: int, side: Side) -> Places | None:
        """Places of the tokens that truncation keeps. None where more must be read to know."""
        kept = share_budget(list(map(len, self._places)), max_tokens - len(self._special))
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
