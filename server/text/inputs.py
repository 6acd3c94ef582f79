"""What a client may send for one sequence, and how much work it is to tokenise."""

from collections.abc import Sequence
from typing import NamedTuple

from server.text.chat_template import Chat, count_message_chars
from server.wire.job import TokenSequence

Text = str | tuple[str, str]
Input = str | tuple[str, str] | list[int] | TokenSequence | Chat
"""A text, a pair of texts, token ids used as they are, such with their types, or a chat."""

CHUNK_CHARS = 16_384
"""What a thread takes at a time, about 5 ms: between two chunks other calls get their turn."""
INLINE_CHARS = 500
"""Calls of no more are tokenised on the event loop's thread, which they hold for 0.2 to 0.3 ms (WordPiece and
byte-level BPE, 0.4 to 0.6 us a character on a core of a 2 GHz server). To a thread of the pool and back takes 0.08 ms
where all is idle, and several switches of threads where it is not."""
LONG_CHARS = 131_072
"""Chunks of more, which can only be one text without borders, have a thread of their own: for seconds no others could
be tokenised."""
ITEM_CHARS = 16
"""An input costs as much as so many characters before its first one."""
IDS_PER_CHAR = 8
"""Token ids that are checked in the time of one character."""


class Size(NamedTuple):
    """Of a call's inputs: characters of texts, and ids that came as such. `has_chats`: their template adds more."""

    num_chars: int
    num_ids: int = 0
    has_chats: bool = False


def measure(inputs: Sequence[Input]) -> Size:
    num_chars, num_ids, has_chats = 0, 0, False
    for item in inputs:
        if isinstance(item, str):
            num_chars += len(item)
        elif isinstance(item, list):
            num_ids += len(item)
        elif isinstance(item, TokenSequence):
            num_ids += item.num_tokens
        elif isinstance(item, tuple):
            num_chars += len(item[0]) + len(item[1])
        else:
            num_chars += sum(map(count_message_chars, item.messages))
            has_chats = True
    return Size(num_chars, num_ids, has_chats)


def is_short(inputs: Sequence[Input]) -> bool:
    """Whether to tokenise at once. Chats wait for their template, which may do anything."""
    if len(inputs) > INLINE_CHARS // ITEM_CHARS:
        return False
    size = measure(inputs)
    return not size.has_chats and size.num_chars + len(inputs) * ITEM_CHARS + size.num_ids // IDS_PER_CHAR <= (
        INLINE_CHARS
    )


def is_long(inputs: Sequence[Input]) -> bool:
    return measure(inputs).num_chars > LONG_CHARS


def split_chunks(inputs: Sequence[Input]) -> list[tuple[int, int]]:
    """Ranges of neighbours, about CHUNK_CHARS characters each."""
    chunks, first, size = [], 0, 0
    for index, item in enumerate(inputs):
        if size > CHUNK_CHARS:
            chunks.append((first, index))
            first, size = index, 0
        part = measure((item,))
        size += part.num_chars + part.num_ids // IDS_PER_CHAR + ITEM_CHARS
    return [*chunks, (first, len(inputs))]
