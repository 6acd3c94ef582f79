"""Tokens to text, one at a time: every token stands for some bytes, and the text is those bytes read as UTF-8.

So no character is ever split, what has been said is never taken back, and a token costs one look into a table. The
library's own stream decodes a window of tokens again for each new one, fails on invalid runs of byte tokens and
does not end what is incomplete. Only the first token of a text is special: there, decoders drop the blank of a word;
and the last one, where blanks stand behind words (BPE's `</w>`).
"""

import codecs
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""SentencePiece's tokens for single bytes."""
UNREADABLE = "\ufffd"
REACH_TOKENS = 16
"""So far back is looked for the beginning of a character that the prompt leaves incomplete: at most 3 bytes, and a few
tokens that say nothing."""


NUM_CANDIDATES = 1000
"""So many words and letters of a vocabulary are looked at for one that stands close to its neighbours."""


def map_characters() -> dict[str, int]:
    """The characters that byte-level BPE writes for bytes: printable ones for themselves, the rest from U+0100 on."""
    shifted = iter(range(0x100, 0x200))
    is_printable = [0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE for byte in range(256)]
    return {chr(byte if is_printable[byte] else next(shifted)): byte for byte in range(256)}


CHARACTER_BYTES = map_characters()
assert set(CHARACTER_BYTES) == set(ByteLevel.alphabet())


def decode(plain: tokenizers.Tokenizer, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
    """The library's Strip panics, outside of `Exception`, where nothing is left of a text; that is an empty one."""
    try:
        return str(plain.decode(ids, skip_special_tokens=skip_special_tokens))
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        return ""


class TokenTexts:
    """What each token of a vocabulary stands for. Mutable: remembers what it has looked up. None: it knows no texts."""

    def __init__(self, plain: tokenizers.Tokenizer | None) -> None:
        self._plain = plain
        self._special_ids: frozenset[int] = frozenset()
        self._unused: dict[int, bool] = {}
        self._pieces: dict[int, bytes] = {}
        self._tails: dict[int, bytes] = {}
        self._anchor: Anchor | None = None
        if plain is not None:
            added = plain.get_added_tokens_decoder()
            self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
            self._anchor = find_anchor(plain, self._special_ids)

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids

    def is_unused(self, token_id: int) -> bool:
        """Models often have more ids than the vocabulary has tokens."""
        unused = self._unused.get(token_id)
        if unused is None:
            unused = self._unused[token_id] = self._plain is None or self._plain.id_to_token(token_id) is None
        return unused

    def find_id(self, token: str) -> int | None:
        """Of a token as the vocabulary writes it; None where it has no such."""
        return None if self._plain is None else self._plain.token_to_id(token)

    def write(self, lists: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """Whole texts as the tokenizer's own decoder has them, on the thread that calls."""
        if self._plain is None:
            return [""] * len(lists)
        return [self.write_one(ids, skip_special_tokens=skip_special_tokens) for ids in lists]

    def write_one(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        if self._plain is None or all(self.is_skipped(token_id, skip_special_tokens) for token_id in ids):
            return ""
        return decode(self._plain, ids, skip_special_tokens=skip_special_tokens)

    def is_skipped(self, token_id: int, skip_special_tokens: bool) -> bool:
        return self.is_unused(token_id) or (skip_special_tokens and self.is_special(token_id))

    def find_bytes(self, token_id: int) -> bytes:
        """In the middle of a text, a special token's name included."""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._read(token_id, self._anchor)
        return piece

    def find_first_bytes(self, token_id: int) -> bytes:
        """At the beginning of a text."""
        return self._read(token_id, None)

    def find_tail(self, token_id: int) -> bytes:
        """The blank that stands behind it once another token comes."""
        if self._anchor is None or not self._anchor.has_tails:
            return b""
        tail = self._tails.get(token_id)
        if tail is None:
            assert self._plain is not None
            both, text = decode(self._plain, [token_id, self._anchor.token_id]), decode(self._plain, [token_id])
            tail = both.removesuffix(self._anchor.text).removeprefix(text).encode()
            self._tails[token_id] = tail
        return tail

    def _read(self, token_id: int, anchor: "Anchor | None") -> bytes:
        """`anchor` stands before it."""
        if self._plain is None:
            return b""
        ids, before = ([token_id], "") if anchor is None else ([anchor.token_id, token_id], anchor.text)
        text = decode(self._plain, ids).removeprefix(before)
        if UNREADABLE in text:
            return find_raw_bytes(self._plain.id_to_token(token_id) or "") or text.encode()
        return text.encode()

    def name(self, token_id: int) -> str:
        """For people and for clients' tables: the text, or the bytes where they are no text."""
        if self._plain is None:
            return f"token_id:{token_id}"
        piece = self.find_bytes(token_id) + self.find_tail(token_id)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


@dataclass(frozen=True, slots=True)
class Anchor:
    """A token to put beside others, to see what these are in the middle of a text. `has_tails`: some of them have a
    blank behind them, unless they are the last."""

    token_id: int
    text: str
    has_tails: bool = False


def find_anchor(plain: tokenizers.Tokenizer, special_ids: Container[int]) -> Anchor | None:
    """Any token that is a word or a letter, one that stands close to others if there is such. None in a vocabulary
    without one."""
    candidates = list(islice(list_words(plain, special_ids), NUM_CANDIDATES))
    for token_id, text in candidates:
        if decode(plain, [token_id, token_id]) == text + text:
            return Anchor(token_id, text, has_tails(plain, candidates, token_id, text))
    return Anchor(*candidates[0]) if candidates else None


def list_words(plain: tokenizers.Tokenizer, special_ids: Container[int]) -> Iterator[tuple[int, str]]:
    """Tokens that are words or letters, with their texts."""
    for token_id in range(plain.get_vocab_size()):
        if token_id in special_ids or BYTE_TOKEN.fullmatch(plain.id_to_token(token_id) or ""):
            continue
        text = decode(plain, [token_id])
        if text.isalpha():
            yield token_id, text


def has_tails(plain: tokenizers.Tokenizer, words: Iterable[tuple[int, str]], token_id: int, text: str) -> bool:
    """`token_id` has no blank before it: what is between it and another one is that one's."""
    return any(decode(plain, [word, token_id]) != before + text for word, before in words)


def find_raw_bytes(token: str) -> bytes:
    """Of a token that is a part of a character; empty where it is not written as bytes."""
    single = BYTE_TOKEN.fullmatch(token)
    if single:
        return bytes([int(single[1], 16)])
    found = [CHARACTER_BYTES.get(character) for character in token]
    return bytes(byte for byte in found if byte is not None) if None not in found else b""


class Detokenizer:
    """One text as it grows. Mutable: the bytes of a character that is not complete, and the blank behind the last
    token, which comes with the next one."""

    def __init__(self, texts: TokenTexts, *, skip_special_tokens: bool = True) -> None:
        self._texts = texts
        self._skip_special_tokens = skip_special_tokens
        self._is_first = True
        self._tail = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def prime(self, prompt: Sequence[int]) -> None:
        """Go on after this prompt, whose own text is not wanted. Call it before anything else."""
        self._is_first = all(self._is_skipped(token_id) for token_id in reversed(prompt))
        for token_id in prompt[-REACH_TOKENS:]:
            if not self._is_skipped(token_id):
                self._decoder.decode(self._texts.find_bytes(token_id))
                self._tail = self._texts.find_tail(token_id)

    def copy(self) -> "Detokenizer":
        """Another one, which goes on from here."""
        twin = Detokenizer(self._texts, skip_special_tokens=self._skip_special_tokens)
        twin._is_first = self._is_first
        twin._tail = self._tail
        twin._decoder.setstate(self._decoder.getstate())
        return twin

    def push(self, token_id: int) -> str:
        """The characters that this token completes."""
        if self._is_skipped(token_id):
            return ""
        find = self._texts.find_first_bytes if self._is_first else self._texts.find_bytes
        self._is_first = False
        before, self._tail = self._tail, self._texts.find_tail(token_id)
        return self._decoder.decode(before + find(token_id))

    def finish(self) -> str:
        """What stands for a character that was never completed."""
        return self._decoder.decode(b"", final=True)

    def _is_skipped(self, token_id: int) -> bool:
        return self._texts.is_skipped(token_id, self._skip_special_tokens)


def detokenize(texts: TokenTexts, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
    """A whole text."""
    stream = Detokenizer(texts, skip_special_tokens=skip_special_tokens)
    return "".join([*map(stream.push, token_ids), stream.finish()])
