"""Tokens with their places in the text as it was sent, for answers that point into it; long texts in windows.

Places count characters (code points), as the fast tokenizers of transformers have them.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers

from server.errors import InvalidField
from server.text.truncation import Places, find_chars
from server.wire.job import TokenSequence

BLANK = ord(" ")
UNIGRAM_UNKNOWN = ("<unk>", "[UNK]")
"""DeBERTa's is the second."""
Offsets = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class Kept(NamedTuple):
    """What stays of an input: these places of what was read of it, which begins `shift` characters into the text."""

    encoding: tokenizers.Encoding
    places: Any
    shift: int = 0


class Window(NamedTuple):
    """One sequence of a text, all of it or a part; every array is `[num_tokens]`.

    Token i is `text[starts[i]:ends[i]]`. Of a pair `text` is the second one. `is_special`: the token is none of
    `text`'s: it has no place. `is_subword`: it goes on with the word of the token before it, as far as transformers'
    TokenClassificationPipeline can tell. `is_unknown`: the vocabulary has no token for it. `words`: which one of the
    text's each token is of, as the tokenizer splits it before it makes tokens; -1 where it does not say.
    """

    sequence: TokenSequence
    text: str
    starts: Offsets
    ends: Offsets
    is_special: Flags
    is_subword: Flags
    is_unknown: Flags
    words: npt.NDArray[np.int64]

    def pick(self, places: Places | slice) -> "Window":
        """The one that these tokens are."""
        ids, types = self.sequence.input_ids, self.sequence.token_type_ids
        return Window(
            TokenSequence(ids[places], None if types is None else types[places]),
            self.text,
            self.starts[places],
            self.ends[places],
            self.is_special[places],
            self.is_subword[places],
            self.is_unknown[places],
            self.words[places],
        )


class WordRules(NamedTuple):
    """How a tokenizer writes words. `has_prefix`: what goes on with a word is longer in the vocabulary than in the
    text, by WordPiece's `##`. `unknown_id`: None where nothing is unknown."""

    has_prefix: bool
    unknown_id: int | None


def find_word_rules(plain: tokenizers.Tokenizer) -> WordRules:
    """Asked of the model inside, which names its unknown token, except for a Unigram: that does not tell."""
    model = plain.model
    names = UNIGRAM_UNKNOWN if isinstance(model, tokenizers.models.Unigram) else (getattr(model, "unk_token", None),)
    found = (plain.token_to_id(name) for name in names if name is not None)
    unknown_id = next((token_id for token_id in found if token_id is not None), None)
    return WordRules(bool(getattr(model, "continuing_subword_prefix", None)), unknown_id)


def cut_windows(whole: Window, max_tokens: int, stride: int, max_windows: int) -> list[Window]:
    """Each has as many of the text's tokens as fit beside all the others, which are in every window; `stride` of them
    are shared by neighbours, as tokenizers' Encoding.truncate has it.

    Raises InvalidField where a window has no room for more than the stride, or there would be too many.
    """
    moving, kept = np.flatnonzero(~whole.is_special), np.flatnonzero(whole.is_special)
    room = max_tokens - len(kept)
    if len(moving) <= room:
        return [whole]
    if stride >= room:
        raise InvalidField(f"stride is {stride} tokens, and a window has room for {max(room, 0)} of the text", "stride")
    begins = range(0, len(moving) - stride, room - stride)
    if len(begins) > max_windows:
        raise InvalidField(
            f"is cut into {len(begins)} windows; the limit is {max_windows} here, set a smaller stride or send less"
        )
    return [whole.pick(np.sort(np.concatenate([kept, moving[begin : begin + room]]))) for begin in begins]


def find_owners(encoding: tokenizers.Encoding) -> npt.NDArray[np.int64]:
    """Which text each token is of: 0 or 1; -1 for special ones."""
    owners: list[Any] = [-1 if owner is None else owner for owner in encoding.sequence_ids]
    return np.array(owners, dtype=np.int64)


def find_words(encoding: tokenizers.Encoding) -> npt.NDArray[np.int64]:
    """Counted in each text."""
    words: list[Any] = [-1 if word is None else word for word in encoding.word_ids]
    return np.array(words, dtype=np.int64)


def locate(
    plain: tokenizers.Tokenizer, kept: Kept, text: str, owner: int, sequence: TokenSequence, rules: WordRules
) -> Window:
    """All that was read. `text` is the input's text `owner`: 0, or 1 for the second of a pair."""
    is_special = find_owners(kept.encoding) != owner
    chars = np.zeros((len(is_special), 2), np.int64)
    # One by one: a list of all offsets is made without letting go of the GIL.
    for place in np.flatnonzero(~is_special):
        chars[place] = find_chars(kept.encoding, place)
    starts, ends = (chars + kept.shift).T
    ids = np.array(kept.encoding.ids, np.int64)
    is_unknown = ids == (-1 if rules.unknown_id is None else rules.unknown_id)
    goes_on = measure_tokens(plain, ids) != ends - starts if rules.has_prefix else find_joined(text, starts)
    is_subword = goes_on & ~is_unknown
    return Window(sequence, text, starts, ends, is_special, is_subword, is_unknown, find_words(kept.encoding))


def measure_tokens(plain: tokenizers.Tokenizer, ids: Offsets) -> Offsets:
    """How many characters each has in the vocabulary."""
    unique, inverse = np.unique(ids, return_inverse=True)
    return np.array([len(plain.id_to_token(int(each)) or "") for each in unique], np.int64)[inverse]


def find_joined(text: str, starts: Offsets) -> Flags:
    """Whether there is no blank at a place or right before it: neither the text's beginning nor a word's."""
    blanks = np.frombuffer(text.encode("utf-32-le"), np.uint32) == BLANK
    blanks = np.append(blanks, False)
    is_joined: Flags = (starts > 0) & ~blanks[np.maximum(starts - 1, 0)] & ~blanks[starts]
    return is_joined
