"""Where a text may be cut without changing the tokens on either side.

A border lies between two characters that no token of the vocabulary and no word of the pre-tokenizer spans: what
stands before it and what stands behind it are then tokenised independently. Which characters make borders depends on
the tokenizer, and it is asked for them, not recognised by name.
"""

import re
from typing import NamedTuple

import tokenizers

from server.text.detokenizer import CHARACTER_BYTES, find_raw_bytes

BREAKS = " \n,;:!?()[]{}。、！？；：，"  # noqa: RUF001
"""Characters that may end the word before them. Not the apostrophe (don't), nor what numbers are written with."""
MARKS = '"#$%&()*+,/:;<=>?@[]^{|}~'
IDEOGRAPHS, ALL_IDEOGRAPHS = "一三你我的是不中日本語文龥", "一-龥"
"""Some that stand for all of the common block (U+4E00 to U+9FA5)."""
STEADY = f"[!-~{ALL_IDEOGRAPHS}]"
"""Characters that combine with none before them."""
WORDS = "a 1 . a"
LETTER = r"[^\W_]"
LETTER_BYTE = rb"[0-9A-Za-z\x80-\xff]"
WRITTEN_BYTES = {byte: char for char, byte in CHARACTER_BYTES.items()}
SUSPECT = re.compile(f"(?s:.)[▁{re.escape(BREAKS + ''.join(WRITTEN_BYTES[mark.encode()[0]] for mark in BREAKS))}]")
"""Tokens that may have one of `BREAKS` behind something: there are few, and the rest need not be looked at closely."""
NOWHERE = re.compile(r"(?!)")


class Borders(NamedTuple):
    """`pattern` matches the character before a border. `margin`: so close to where a text was cut, its tokens may be
    others all the same, for added tokens like `<mask>` are looked for before everything else; in characters."""

    pattern: re.Pattern[str]
    margin: int


def find_borders(plain: tokenizers.Tokenizer) -> Borders:
    """Of a tokenizer that does not truncate. Reads its vocabulary once: about 0.1 s per 100,000 tokens."""
    margin = max((len(token.content) for token in plain.get_added_tokens_decoder().values()), default=0)
    if isinstance(plain.model, tokenizers.models.BPE | tokenizers.models.Unigram):
        # Merges and the best path are as local as their tokens, however the text is split into words.
        return Borders(compile_pattern(find_uncrossed(plain), ""), margin)
    if len(split(plain, WORDS)) < len(WORDS.split()):
        return Borders(NOWHERE, margin)
    # Words are looked up by themselves, so that those of the pre-tokenizer are enough.
    breaks = "".join(mark for mark in BREAKS if split(plain, f"a{mark}a")[:1] == ["a"])
    return Borders(compile_pattern(breaks, find_lone(plain)), margin)


def compile_pattern(breaks: str, lone: str) -> re.Pattern[str]:
    """`breaks` end a word before them; `lone` ones, ready for a set, are always words by themselves."""
    patterns = [f"{LETTER}(?=[{re.escape(breaks)}])"] if breaks else []
    if lone:
        patterns += [f"[{lone}](?={STEADY})", f"{STEADY}(?=[{lone}])"]
    return re.compile("|".join(patterns)) if patterns else NOWHERE


def split(plain: tokenizers.Tokenizer, text: str) -> list[str]:
    """The words that a text is split into."""
    if plain.normalizer is not None:
        text = plain.normalizer.normalize_str(text)
    if plain.pre_tokenizer is None:
        return [text]
    return [word for word, _ in plain.pre_tokenizer.pre_tokenize_str(text)]


def find_lone(plain: tokenizers.Tokenizer) -> str:
    def is_lone(mark: str) -> bool:
        return split(plain, f"a{mark}{mark}a") == ["a", mark, mark, "a"]

    marks = "".join(map(re.escape, filter(is_lone, MARKS)))
    return marks + ALL_IDEOGRAPHS if all(map(is_lone, IDEOGRAPHS)) else marks


def find_uncrossed(plain: tokenizers.Tokenizer) -> str:
    """Those of `BREAKS` that no token has behind a letter or a digit."""
    suspects = [read_bytes(token) for token in plain.get_vocab(with_added_tokens=False) if SUSPECT.search(token)]

    def is_crossed(mark: str) -> bool:
        pattern = re.compile(LETTER_BYTE + b"(?:%b)" % match_beginning(mark.encode()))
        return any(map(pattern.search, suspects))

    return "".join(mark for mark in BREAKS if is_kept(plain, mark) and not is_crossed(mark))


def match_beginning(mark: bytes) -> bytes:
    """A pattern for a character, or for as much of its UTF-8 as a token may end with."""
    return b"|".join([re.escape(mark), *(re.escape(mark[:size]) + b"$" for size in range(1, len(mark)))])


def read_bytes(token: str) -> bytes:
    """What a token of a byte-level or of a SentencePiece vocabulary says."""
    return find_raw_bytes(token) or token.replace("▁", " ").encode()


def is_kept(plain: tokenizers.Tokenizer, mark: str) -> bool:
    """Whether the model sees the character itself. Blanks are written in several ways, which `read_bytes` knows."""
    return mark == " " or plain.normalizer is None or f"a{mark}a" in plain.normalizer.normalize_str(f"a{mark}a")
