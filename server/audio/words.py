"""Tokens to words: as `tokenizer.py` and `timing.py` of openai-whisper put them together, and transformers after it."""

import string
from collections.abc import Sequence
from dataclasses import dataclass

from server.audio.segments import FRAMES_PER_TIMESTAMP, Segment, TranscriptTokens, Word

UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
"""Languages that write no blanks between words: there each character, or run of bytes that is one, is a word."""
OPENING = "\"'“¡¿([{-"
"""Punctuation that belongs to the word behind it."""
CLOSING = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001
"""And to the word before it."""
BROKEN = "\ufffd"
"""What a part of a character's bytes is written as."""


@dataclass(frozen=True, slots=True)
class WordTokens:
    """A word as it is written, with the blank before it, and the places of its tokens: from `first` up to `end`."""

    text: str
    first: int
    end: int

    def join(self, other: "WordTokens") -> "WordTokens":
        return WordTokens(self.text + other.text, self.first, other.end)


def time_words(segment: Segment, ends: Sequence[int], tokens: TranscriptTokens, language: str) -> tuple[Word, ...]:
    """`ends`: of all tokens of the segment's window, in rows of the encoder from the window's beginning on."""
    places = [place for place, token_id in enumerate(segment.token_ids) if token_id < tokens.end_id]
    times = [segment.seek + FRAMES_PER_TIMESTAMP * end for end in (0, *ends)]
    words = split_words(tokens, [segment.token_ids[place] for place in places], language)
    return tuple(
        Word(
            word.text.strip(),
            times[segment.place + places[word.first]],
            times[segment.place + places[word.end - 1] + 1],
        )
        for word in words
    )


def split_words(tokens: TranscriptTokens, token_ids: Sequence[int], language: str) -> list[WordTokens]:
    """Of tokens of text alone, in a language by its code."""
    words = split_characters(tokens, token_ids)
    return merge_punctuation(words if language in UNSPACED else join_at_blanks(words))


def split_characters(tokens: TranscriptTokens, token_ids: Sequence[int]) -> list[WordTokens]:
    """The least runs of tokens that are whole characters. What the whole text has broken stays so."""
    whole, written = tokens.write(token_ids), 0
    found: list[WordTokens] = []
    first = 0
    for end in range(1, len(token_ids) + 1):
        text = tokens.write(token_ids[first:end])
        place = text.find(BROKEN)
        if place < 0 or whole[written + place : written + place + 1] in ("", BROKEN):
            found.append(WordTokens(text, first, end))
            first, written = end, written + len(text)
    return found


def join_at_blanks(parts: Sequence[WordTokens]) -> list[WordTokens]:
    """A word begins with a blank; punctuation is one of its own."""
    words: list[WordTokens] = []
    for part in parts:
        begins = part.text.startswith(" ") or part.text.strip() in string.punctuation
        if begins or not words:
            words.append(part)
        else:
            words[-1] = words[-1].join(part)
    return words


def merge_punctuation(words: Sequence[WordTokens]) -> list[WordTokens]:
    """With the words they belong to: marks that open with the one behind them, then marks that close with the one
    before."""
    opened: list[WordTokens] = []
    for word in reversed(words):
        if opened and word.text.startswith(" ") and word.text.strip() in OPENING:
            opened[-1] = word.join(opened[-1])
        else:
            opened.append(word)
    merged: list[WordTokens] = []
    for word in reversed(opened):
        if merged and not merged[-1].text.endswith(" ") and word.text in CLOSING:
            merged[-1] = merged[-1].join(word)
        else:
            merged.append(word)
    return merged
