"""Text to tokens, off the event loop, never longer than the model takes. Knows tokenizer.json; knows no HTTP.

Each text is encoded by itself on a thread of our own pool (the library lets go of the GIL meanwhile). `encode_batch`
would start rayon's pool, one thread per core, and those would fight with the engine for the cores.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import tokenizers

from models.info import ModelDirectoryError
from server.errors import EmptyInput, InputTooLong, InvalidField, TokenizerFailure
from server.text.detokenizer import TokenTexts
from server.wire.job import TokenArray, TokenSequence

logger = logging.getLogger("padless.http")

Result = TypeVar("Result")
Truncation = Literal["error", "right", "left"]
Text = str | tuple[str, str]
Input = str | tuple[str, str] | list[int]
"""What a client may send for one sequence: a text, a pair of texts, or token ids used as they are."""

GUARD_CHARS_PER_TOKEN = 32
"""Texts of more characters per token of the limit are cut or refused before they are tokenised.

Prose has 3 to 6 characters per token (Chinese 1 to 2), source code and tables with runs of blanks up to 12. Only text
that is nearly all blanks has more; truncation notices, and looks further.
"""
MAX_REACH = 16
"""So many times the guard is as far as truncation looks: what follows 512 blanks per token may be missed, and in
return a body of 16 MB of blanks costs a thread 0.5 s and not 20 s."""
CHUNK_CHARS = 16_384
"""What a thread takes at a time, about 5 ms: between two chunks other calls get their turn."""


NO_TEXTS = "is text, but this model has no tokenizer; send token ids"


class Piece(NamedTuple):
    """One token as `/tokenize` shows it; `start` and `stop` count characters, and are None for special tokens."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Tokenizer:
    """One model's tokenizer. Immutable after construction; encoding is safe from several threads.

    `plain` None: the model has none. Then token ids pass as they do elsewhere, texts are refused, and all ids are
    without text. `can_truncate`: the model's routes can cut inputs that are too long, so errors may say so.
    """

    def __init__(
        self,
        plain: tokenizers.Tokenizer | None,
        *,
        max_input_tokens: int,
        vocab_size: int,
        type_vocab_size: int,
        pool: ThreadPoolExecutor,
        num_threads: int = 1,
        can_truncate: bool = True,
    ) -> None:
        self.max_input_tokens = max_input_tokens
        self.max_chars = max_input_tokens * GUARD_CHARS_PER_TOKEN
        self.texts = TokenTexts(plain)
        self._plain = plain
        self._cutting: dict[str, tokenizers.Tokenizer] = {}
        self._vocab_size = vocab_size
        self._pool = pool
        self._num_threads = num_threads
        self._can_truncate = can_truncate
        # Single texts of almost every model are all type 0: looked up once, not per text.
        self._has_pair_types = type_vocab_size > 1
        self._has_single_types = False
        if plain is not None:
            plain.no_padding()
            plain.no_truncation()
            self._cutting = {side: build_cutting(plain, max_input_tokens, side) for side in ("right", "left")}
            self._has_single_types = self._has_pair_types and any(plain.encode("a").type_ids)

    @property
    def knows_texts(self) -> bool:
        """False for models whose tokens are all there is."""
        return self._plain is not None

    async def run(self, function: Callable[[], Result]) -> Result:
        """Work of the same kind, on the same threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def encode(
        self, inputs: Sequence[Input], *, truncation: Truncation, field: str, add_special_tokens: bool = True
    ) -> list[TokenSequence]:
        """Sequences in the order of the inputs. Errors name `field`. Raises InvalidField and its kinds.

        `add_special_tokens`: as the model wants them around a text; what may be cut always gets them.
        """
        chunks = list(split_chunks(inputs))
        sequences: list[TokenSequence] = []
        loop = asyncio.get_running_loop()
        # No more chunks in the pool than it has threads, so that a call of 2,048 texts leaves room for others.
        for begin in range(0, len(chunks), self._num_threads):
            futures = [
                loop.run_in_executor(
                    self._pool, self._encode_chunk, inputs[first:last], first, truncation, field, add_special_tokens
                )
                for first, last in chunks[begin : begin + self._num_threads]
            ]
            sequences.extend(chain.from_iterable(await asyncio.gather(*futures)))
        return sequences

    def _encode_chunk(
        self, inputs: Sequence[Input], first: int, truncation: Truncation, field: str, add_special_tokens: bool
    ) -> list[TokenSequence]:
        sequences = []
        for index, item in enumerate(inputs, first):
            try:
                if isinstance(item, list):
                    sequences.append(self._check_ids(item, truncation))
                else:
                    sequences.append(self._encode_text(item, truncation, add_special_tokens))
            except InvalidField as error:
                place = f"{field}[{index}]" if len(inputs) > 1 or first else field
                raise type(error)(f"{place} {error.message}", param=field) from None
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                # A panic in the Rust library is no Exception; left alone it would end more than this call.
                raise TokenizerFailure(f"{field}[{index}] cannot be tokenised: {error}", param=field) from error
        return sequences

    def _check_ids(self, ids: list[int], truncation: Truncation) -> TokenSequence:
        """Token ids are taken as they are: the client has added the special tokens, if it wants any."""
        if not ids:
            raise EmptyInput("must not be empty")
        if len(ids) > self.max_input_tokens:
            if truncation == "error":
                raise self._too_long(len(ids))
            ids = ids[: self.max_input_tokens] if truncation == "right" else ids[-self.max_input_tokens :]
        low, high = min(ids), max(ids)
        if low < 0 or high >= self._vocab_size:
            wrong = low if low < 0 else high
            raise InvalidField(f"has the token id {wrong}; ids of this model go from 0 to {self._vocab_size - 1}")
        return TokenSequence(np.array(ids, dtype=np.int32))

    def _find_plain(self) -> tokenizers.Tokenizer:
        """Raises InvalidField where there is none."""
        if self._plain is None:
            raise InvalidField(NO_TEXTS)
        return self._plain

    def _encode_text(self, text: Text, truncation: Truncation, add_special_tokens: bool) -> TokenSequence:
        plain = self._find_plain()
        first, second = text if isinstance(text, tuple) else (text, None)
        if not first or second == "":
            raise EmptyInput("must not be empty")
        num_chars = len(first) + len(second or "")
        if truncation == "error":
            if num_chars > self.max_chars:
                raise InputTooLong(
                    f"has {num_chars} characters, more than {self.max_input_tokens} tokens can hold; {self._remedy()}"
                )
            encoding = plain.encode(first, second, add_special_tokens=add_special_tokens)
            if len(encoding) > self.max_input_tokens:
                raise self._too_long(len(encoding))
        else:
            encoding = self._encode_cut(first, second, truncation)
        return TokenSequence(np.array(encoding.ids, dtype=np.int32), self._find_types(encoding, second is not None))

    def _encode_cut(self, first: str, second: str | None, truncation: Truncation) -> tokenizers.Encoding:
        """Truncate to the limit, looking at no more of the text than it takes to fill it."""
        tokenizer, reach = self._cutting[truncation], self.max_chars
        while True:
            heads = [None if text is None else cut_text(text, reach, truncation) for text in (first, second)]
            encoding = tokenizer.encode(heads[0], heads[1])
            # Something was cut off: then the part that was not looked at would have been cut off as well.
            if encoding.overflowing or heads == [first, second] or reach >= self.max_chars * MAX_REACH:
                return encoding
            reach *= 2

    def _find_types(self, encoding: tokenizers.Encoding, is_pair: bool) -> TokenArray | None:
        if not (self._has_pair_types if is_pair else self._has_single_types):
            return None
        types = np.array(encoding.type_ids, dtype=np.int32)
        return types if types.any() else None

    def _too_long(self, num_tokens: int) -> InputTooLong:
        return InputTooLong(f"has {num_tokens} tokens; the limit is {self.max_input_tokens}; {self._remedy()}")

    def _remedy(self) -> str:
        if not self._can_truncate:
            return "shorten it"
        return "shorten it, or ask for truncation (`truncate` of the request, limits.truncation of the server)"

    async def describe(self, texts: Sequence[str], *, add_special_tokens: bool, field: str) -> list[list[Piece]]:
        """Tokens with their place in the text, nothing truncated. Raises InvalidField and its kinds."""
        loop = asyncio.get_running_loop()
        described = []
        for index, text in enumerate(texts):
            if self._plain is None:
                raise InvalidField(f"{field}[{index}] {NO_TEXTS}", param=field)
            if not 0 < len(text) <= self.max_chars:
                problem = EmptyInput if not text else InputTooLong
                raise problem(f"{field}[{index}] must have 1 to {self.max_chars} characters", param=field)
            described.append(await loop.run_in_executor(self._pool, self._describe_text, text, add_special_tokens))
        return described

    def _describe_text(self, text: str, add_special_tokens: bool) -> list[Piece]:
        encoding = self._find_plain().encode(text, add_special_tokens=add_special_tokens)
        pieces = []
        parts = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True)
        for token_id, token, is_special, (start, stop) in parts:
            if is_special:
                pieces.append(Piece(token_id, token, True, None, None))
            else:
                pieces.append(Piece(token_id, text[start:stop], False, start, stop))
        return pieces


def load_tokenizer(directory: Path, *, lowercase: bool = False, is_required: bool = True, **options: Any) -> Tokenizer:
    """Read tokenizer.json, to see lower case only if `lowercase`; `options` are the Tokenizer's own.

    Raises ModelDirectoryError, also where there is none and it `is_required`.
    """
    path = directory / "tokenizer.json"
    if not path.is_file() and not is_required:
        logger.warning("%s: no such file; this model takes token ids and answers with them", path)
        return Tokenizer(None, **options)
    if not path.is_file():
        raise ModelDirectoryError(
            f"{path}: no such file; Padless needs the fast tokenizer's file. With transformers: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...) writes it"
        )
    try:
        plain = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        raise ModelDirectoryError(f"{path}: not a tokenizer this library can read: {error}") from error
    if lowercase:
        first = tokenizers.normalizers.Lowercase()
        rest = [plain.normalizer] if plain.normalizer is not None else []
        plain.normalizer = tokenizers.normalizers.Sequence([first, *rest])
    return Tokenizer(plain, **options)


def build_cutting(plain: tokenizers.Tokenizer, max_input_tokens: int, side: str) -> tokenizers.Tokenizer:
    """A second tokenizer that truncates at one end, special tokens kept. Shares the vocabulary with the first."""
    twin = tokenizers.Tokenizer(plain.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        setattr(twin, part, getattr(plain, part))
    for _, token in sorted(plain.get_added_tokens_decoder().items()):
        twin.add_special_tokens([token]) if token.special else twin.add_tokens([token])
    if twin.get_added_tokens_decoder() != plain.get_added_tokens_decoder():
        # Ids with gaps cannot be added one by one: a copy of everything, vocabulary included.
        twin = tokenizers.Tokenizer.from_str(plain.to_str())
    twin.enable_truncation(max_input_tokens, strategy="longest_first", direction=side)
    return twin


def cut_text(text: str, reach: int, truncation: Truncation) -> str:
    """About `reach` characters from the end that is kept, cut between words where there are any."""
    if len(text) <= reach:
        return text
    if truncation == "right":
        blank = text.rfind(" ", reach // 2, reach)
        return text[: blank if blank > 0 else reach]
    blank = text.find(" ", len(text) - reach, len(text) - reach // 2)
    return text[blank if blank > 0 else len(text) - reach :]


def count_chars(inputs: Sequence[Input]) -> int:
    """Characters to tokenise; token ids cost next to nothing."""
    total = 0
    for item in inputs:
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, tuple):
            total += len(item[0]) + len(item[1])
    return total


def split_chunks(inputs: Sequence[Input]) -> list[tuple[int, int]]:
    """Ranges of neighbours, about CHUNK_CHARS characters each."""
    chunks, first, size = [], 0, 0
    for index, item in enumerate(inputs):
        if size > CHUNK_CHARS:
            chunks.append((first, index))
            first, size = index, 0
        size += count_chars((item,)) + 16
    return [*chunks, (first, len(inputs))]
