"""Text to tokens, never longer than the model takes. Knows tokenizer.json; knows no HTTP.

Each text is encoded by itself on a thread of our own pool, short ones at once on the event loop's. The library's
`encode` holds the GIL, `encode_batch` lets go of it (1 MB of text: the event loop stood still for 990 ms, and for 8);
but it starts rayon's threads, one per core, which would fight with the engine for the cores: see ENVIRONMENT.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tokenizers

from server.errors import EmptyInput, InputTooLong, InvalidField, TokenizerFailure
from server.text.borders import NOWHERE, Borders, find_borders
from server.text.chat_template import NO_CHAT_TEMPLATE, Chat, ChatTemplate
from server.text.detokenizer import TokenTexts
from server.text.given_ids import IdRange
from server.text.inputs import Input, Text, is_long, is_short, split_chunks
from server.text.located import Kept, Window, cut_windows, find_word_rules, locate
from server.text.pairs import SharedText, count_special, find_shared, join_pair
from server.text.truncation import (
    GROWTH,
    UNBROKEN_CHARS,
    Head,
    Reading,
    TruncationSide,
    cut_text,
    find_chars,
    take_whole,
)
from server.text.work import Truncation, Work, check_certain, make_too_long
from server.wire.job import TokenArray, TokenSequence

Result = TypeVar("Result")

ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false"}
"""For the processes that tokenise: `encode_batch` then works on the thread that calls it. Read at each call."""

CHARS_PER_TOKEN = 8
"""So many characters per token of the limit truncation reads at first. Prose has 3 to 6 (Chinese 1 to 2)."""
GUARD_CHARS_PER_TOKEN = 32
"""So many are read at first of a text that must not be truncated: enough to count the tokens of nearly all."""

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
    without text.
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
        chat_template: ChatTemplate = NO_CHAT_TEMPLATE,
    ) -> None:
        self.max_input_tokens = max_input_tokens
        self.texts = TokenTexts(plain)
        self._plain = plain
        self.chat_template = chat_template
        self._given = IdRange(vocab_size, type_vocab_size)
        self._pool = pool
        self._long_pool = ThreadPoolExecutor(1, "long-text")
        self._num_threads = num_threads
        # Single texts of almost every model are all type 0: looked up once, not per text.
        self._has_pair_types = type_vocab_size > 1
        self._has_single_types = False
        self._can_join = False
        self._borders = Borders(NOWHERE, 0)
        self._decoder: Any = None
        self._spare_id: int | None = None
        if plain is not None:
            plain.no_padding()
            plain.no_truncation()
            self._borders = find_borders(plain)
            self._word_rules = find_word_rules(plain)
            self._spare_id = self._word_rules.unknown_id if plain.get_vocab_size() > vocab_size else None
            self._can_join = plain.post_processor is not None
            self._decoder = plain.decoder
            self._has_single_types = self._has_pair_types and any(plain.encode("a").type_ids)

    @property
    def knows_texts(self) -> bool:
        """False for models whose tokens are all there is."""
        return self._plain is not None

    def name_token(self, token_id: int) -> str:
        """As the vocabulary writes it; empty for ids that it lacks."""
        return self._find_plain().id_to_token(token_id) or ""

    def find_ids(self, tokens: Iterable[str]) -> tuple[int, ...]:
        """Of tokens as the vocabulary writes them; those that it lacks are left out."""
        found = [self.texts.find_id(token) for token in tokens]
        return tuple(token_id for token_id in found if token_id is not None)

    def list_tokens(self, *, only_added: bool = False) -> dict[str, int]:
        """All as the vocabulary writes them, and their ids."""
        plain = self._find_plain()
        if only_added:
            return {token.content: token_id for token_id, token in plain.get_added_tokens_decoder().items()}
        return dict(plain.get_vocab())

    def list_ids(self, text: str) -> list[int]:
        """Of a short text, without special tokens around it. Raises InvalidField where there is no tokenizer."""
        ids: list[int] = self._list_ids(self._find_plain().encode(text, add_special_tokens=False)).tolist()
        return ids

    def join_tokens(self, tokens: Sequence[str]) -> str:
        """Text of tokens as the vocabulary writes them, as transformers' convert_tokens_to_string has it."""
        return " ".join(tokens) if self._decoder is None else str(self._decoder.decode(list(tokens)))

    async def run(self, function: Callable[[], Result]) -> Result:
        """Work of the same kind, on the same threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    def limit_tokens(self, max_tokens: int | None) -> int:
        """What a call wants, and no more than the model takes."""
        return self.max_input_tokens if max_tokens is None else min(max_tokens, self.max_input_tokens)

    async def encode(
        self,
        inputs: Sequence[Input],
        *,
        truncation: Truncation,
        field: str,
        add_special_tokens: bool = True,
        max_tokens: int | None = None,
        cuts_first: bool = False,
    ) -> list[TokenSequence]:
        """Sequences in the order of the inputs. Errors name `field`. Raises InvalidField and its kinds.

        `add_special_tokens`: as the model wants them around a text. Chats never get any but their template's. Special
        tokens count among `max_tokens`, and are never cut off.
        `cuts_first`: truncation leaves the second text of a pair whole, instead of cutting the longer one first.
        """
        most = self.limit_tokens(max_tokens)
        shared = find_shared(inputs) if self._can_join else {}
        work = Work(truncation, field, add_special_tokens, is_short(inputs), most, cuts_first, shared=shared)
        return await self._map(self._encode_input, inputs, work)

    async def locate(self, texts: Sequence[Text], *, truncation: Truncation, field: str) -> list[list[Window]]:
        """One window of each text, truncated as usual, whose tokens know their places. Raises InvalidField's kinds."""
        return await self._map(
            self._locate_text, texts, Work(truncation, field, True, is_short(texts), self.max_input_tokens)
        )

    async def locate_all(
        self, texts: Sequence[Text], *, stride: int, max_windows: int, field: str, max_tokens: int | None = None
    ) -> list[list[Window]]:
        """All of each text, in windows that share `stride` tokens; `max_windows` of all texts. Raises InvalidField.

        One text after the other: windows take much more memory than their text, and so are counted as they are made.
        """
        found: list[list[Window]] = []
        for index, text in enumerate(texts):
            place = f"{field}[{index}]" if len(texts) > 1 else field
            num_left = max_windows - sum(map(len, found))
            most = self.limit_tokens(max_tokens)
            work = Work("error", place, True, is_short([text]), most, stride=stride, max_windows=num_left)
            found += await self._map(self._locate_text, [text], work)
        return found

    async def _map(self, function: Callable[[Any, Work], Result], inputs: Sequence[Input], work: Work) -> list[Result]:
        """What it makes of each input, on the threads that there are for it."""
        if work.is_inline:
            return self._map_chunk(function, inputs, 0, work)
        chunks = split_chunks(inputs)
        found: list[Result] = []
        loop = asyncio.get_running_loop()
        # No more chunks in the pool than it has threads, so that a call of 2,048 texts leaves room for others.
        for begin in range(0, len(chunks), self._num_threads):
            futures = [
                loop.run_in_executor(
                    self._choose_pool(inputs[first:last]), self._map_chunk, function, inputs[first:last], first, work
                )
                for first, last in chunks[begin : begin + self._num_threads]
            ]
            found.extend(chain.from_iterable(await asyncio.gather(*futures)))
        return found

    async def shorten(self, texts: Sequence[str], max_tokens: int, *, field: str) -> list[str]:
        """Each up to the end of its `max_tokens`-th token, special ones not counted. Raises InvalidField's kinds."""
        return await self._map(self._shorten_text, texts, Work("right", field, False, False, max_tokens))

    def _shorten_text(self, text: str, work: Work) -> str:
        """Reads no more of it than it takes."""
        reach = work.max_tokens * CHARS_PER_TOKEN
        while True:
            head = cut_text(text, reach, "right", self._borders)
            encoding = self._read([head], work)
            places = Reading(encoding, [head]).choose_tokens(work.max_tokens, "right")
            if places is not None:
                is_all = head.is_whole and len(places) == len(encoding)
                return text if is_all else text[: find_chars(encoding, places[-1])[1]]
            reach *= GROWTH

    def _choose_pool(self, inputs: Sequence[Input]) -> ThreadPoolExecutor:
        return self._long_pool if is_long(inputs) else self._pool

    def _map_chunk(
        self, function: Callable[[Any, Work], Result], inputs: Sequence[Input], first: int, work: Work
    ) -> list[Result]:
        found = []
        for index, item in enumerate(inputs, first):
            try:
                found.append(function(item, work))
            except InvalidField as error:
                if error.param is not None:  # it names a field of its own: a chat's
                    raise
                place = f"{work.field}[{index}]" if len(inputs) > 1 or first else work.field
                raise type(error)(f"{place} {error.message}", param=work.field) from None
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                # A panic in the Rust library is no Exception; left alone it would end more than this call.
                raise TokenizerFailure(
                    f"{work.field}[{index}] cannot be tokenised: {error}", param=work.field
                ) from error
        return found

    def _encode_input(self, item: Input, work: Work) -> TokenSequence:
        if isinstance(item, list):
            return self._given.take_ids(item, work)
        if isinstance(item, TokenSequence):
            return self._given.take_sequence(item, work)
        if isinstance(item, Chat):
            return self._encode_text(self.chat_template.render_chat(item), work._replace(add_special_tokens=False))
        return self._encode_text(item, work)

    def _find_plain(self) -> tokenizers.Tokenizer:
        """Raises InvalidField where there is none."""
        if self._plain is None:
            raise InvalidField(NO_TEXTS)
        return self._plain

    def _list_ids(self, encoding: tokenizers.Encoding) -> TokenArray:
        """`[num_tokens]`. Pieces that the model has no ids for are unknown to it: Marian's and M2M-100's."""
        ids = np.array(encoding.ids, dtype=np.int32)
        if self._spare_id is not None:
            ids[ids >= self._given.vocab_size] = self._spare_id
        return ids

    def _encode_text(self, text: Text, work: Work) -> TokenSequence:
        kept = self._keep(text, work)
        return self._pack(kept.encoding, kept.places, is_pair=isinstance(text, tuple))

    def _locate_text(self, text: Text, work: Work) -> list[Window]:
        """Of a pair the second text is located, and cut."""
        kept = self._keep(text, work) if work.stride is None else self._read_whole(text, work)
        part, owner = (text[1], 1) if isinstance(text, tuple) else (text, 0)
        sequence = self._pack(kept.encoding, slice(None), is_pair=owner == 1)
        whole = locate(self._find_plain(), kept, part, owner, sequence, self._word_rules)
        if work.stride is None:
            return [whole.pick(kept.places)]
        return cut_windows(whole, work.max_tokens, work.stride, work.max_windows)

    def _read_whole(self, text: Text, work: Work) -> Kept:
        """Raises EmptyInput, InputTooLong."""
        parts = text if isinstance(text, tuple) else (text,)
        if not all(parts):
            raise EmptyInput("must not be empty")
        num_chars = sum(map(len, parts))
        if num_chars > UNBROKEN_CHARS:
            raise InputTooLong(f"has {num_chars:,} characters; with a stride the limit is {UNBROKEN_CHARS:,}; split it")
        encoding = self._read([Head(part, True, 0, len(part)) for part in parts], work)
        return Kept(encoding, slice(None))

    def _keep(self, text: Text, work: Work) -> Kept:
        """Reads no more of the text than it takes to fill the limit, or to know that there are more tokens."""
        parts = text if isinstance(text, tuple) else (text,)
        if not any(parts):
            raise EmptyInput("must not be empty" if len(parts) == 1 else "must not be empty on both sides")
        side: TruncationSide = "left" if work.truncation == "left" else "right"
        chars_per_token = GUARD_CHARS_PER_TOKEN if work.truncation == "error" else CHARS_PER_TOKEN
        reach = work.max_tokens * chars_per_token
        shared = work.shared.get(parts[0]) if len(parts) > 1 else None
        if shared is not None and max(map(len, parts)) <= reach:
            return self._join(shared, parts[-1], side, work)
        while True:
            heads = [cut_text(part, reach, side, self._borders) for part in parts]
            encoding = self._read(heads, work)
            if len(encoding) <= work.max_tokens and all(head.is_whole for head in heads):
                return Kept(encoding, slice(None))
            if work.truncation == "error" and all(head.is_whole for head in heads):
                raise make_too_long(str(len(encoding)), work)
            reading = Reading(encoding, heads)
            if work.truncation == "error":
                check_certain(reading, work)
            elif (places := reading.choose_tokens(work.max_tokens, side, cuts_first=work.cuts_first)) is not None:
                return Kept(encoding, places, len(parts[-1]) - len(heads[-1].text) if side == "left" else 0)
            reach *= GROWTH

    def _join(self, shared: SharedText, text: str, side: TruncationSide, work: Work) -> Kept:
        """As if the pair had been read; both texts are short enough to be read whole."""
        plain, bare = self._find_plain(), work._replace(add_special_tokens=False)
        if shared.encoding is None:  # two threads may find that at once, and do the same
            shared.encoding = self._read([take_whole(shared.text)], bare)
        pair = (shared.encoding, self._read([take_whole(text)], bare))
        num_tokens = sum(map(len, pair)) + count_special(plain, add_special_tokens=work.add_special_tokens)
        if work.truncation == "error" and num_tokens > work.max_tokens:
            raise make_too_long(str(num_tokens), work)
        encoding = join_pair(
            *(plain, pair),
            max_tokens=work.max_tokens,
            side=side,
            add_special_tokens=work.add_special_tokens,
            cuts_first=work.cuts_first,
        )
        return Kept(encoding, slice(None))

    def _read(self, heads: Sequence[Head], work: Work) -> tokenizers.Encoding:
        plain, texts = self._find_plain(), [head.text for head in heads]
        if work.is_inline:
            # Letting go of the GIL for so little would make the event loop queue for it.
            return plain.encode(
                texts[0], texts[1] if len(texts) > 1 else None, add_special_tokens=work.add_special_tokens
            )
        # Not `encode_batch_fast`, which forgets the types of pairs where no post-processor sets them (0.23).
        batch = [tuple(texts) if len(texts) > 1 else texts[0]]
        return plain.encode_batch(batch, add_special_tokens=work.add_special_tokens)[0]

    def _pack(self, encoding: tokenizers.Encoding, places: Any, *, is_pair: bool) -> TokenSequence:
        ids = self._list_ids(encoding)[places]
        if not len(ids):
            raise EmptyInput("must have a token at least; the model's tokenizer leaves nothing of it")
        if not (self._has_pair_types if is_pair else self._has_single_types):
            return TokenSequence(ids)
        types = np.array(encoding.type_ids, dtype=np.int32)[places]
        return TokenSequence(ids, types if types.any() else None)

    async def decode(self, lists: Sequence[list[int]], *, skip_special_tokens: bool, field: str) -> list[str]:
        """The texts of lists of ids, as the tokenizer's own decoder has them. Raises InvalidField and its kinds."""
        if self._plain is None:
            raise InvalidField(f"{field} cannot be read: this model has no tokenizer", param=field)
        work = Work("error", field, False, False, self.max_input_tokens)
        return await self._map(partial(self._decode_ids, skip_special_tokens=skip_special_tokens), lists, work)

    def _decode_ids(self, ids: list[int], work: Work, *, skip_special_tokens: bool) -> str:
        if not ids:
            raise EmptyInput("must not be empty")
        self._given.check(min(ids), max(ids))
        return self._find_plain().decode_batch([ids], skip_special_tokens=skip_special_tokens)[0]

    async def describe(self, texts: Sequence[str], *, add_special_tokens: bool, field: str) -> list[list[Piece]]:
        """All tokens with their place in the text: the body bounds them. Raises InvalidField and its kinds."""
        work = Work("error", field, add_special_tokens, False, self.max_input_tokens)
        return await self._map(self._describe_text, texts, work)

    def _describe_text(self, text: str, work: Work) -> list[Piece]:
        plain = self._find_plain()
        if not text:
            raise EmptyInput("must not be empty")
        encoding = plain.encode_batch([text], add_special_tokens=work.add_special_tokens)[0]
        pieces = []
        ids = self._list_ids(encoding).tolist()
        parts = zip(ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True)
        for token_id, token, is_special, (start, stop) in parts:
            if is_special:
                pieces.append(Piece(token_id, token, True, None, None))
            else:
                pieces.append(Piece(token_id, text[start:stop], False, start, stop))
        return pieces
