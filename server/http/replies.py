"""Answers are written at once, or, where they are long, beside the event loop."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from time import monotonic
from typing import Any, TypeVar

import orjson

from server.http.call import Reply
from server.http.state import ServedModel

INLINE_NUMBERS = 65_536
"""So many numbers of arrays are written on the event loop's thread, in 4 to 8 ms; 2,048 vectors of 1,024 take 150."""
INLINE_ITEMS = 8192
"""The same of what Python makes one by one, such as labels with scores: in 10 ms at most."""
TURN_S = 0.02
"""So long a thread is kept from other calls' texts."""

Part = TypeVar("Part")


async def write_reply(write: Callable[[], bytes | Reply], size: int, most: int, model: ServedModel) -> Reply:
    """What `write` gives: called here if it writes no more than `most`, else on one of the tokenizer's threads."""
    written = write() if size <= most else await model.tokenizer.run(write)
    return written if isinstance(written, Reply) else Reply(written)


async def make_parts(parts: Iterator[Part | None], size: int, most: int, model: ServedModel) -> list[Part]:
    """All of them, as they are made: here if that is no more work than `most`, else in turns on one of the tokenizer's
    threads, which others use between them. None is no part: a turn may end there."""
    made: list[Part] = []
    if size <= most:
        make_some(parts, made, end_s=float("inf"))
        return made
    while not await model.tokenizer.run(lambda: make_some(parts, made, end_s=monotonic() + TURN_S)):
        pass
    return made


def make_some(parts: Iterator[Part | None], made: list[Part], *, end_s: float) -> bool:
    """Whether there are no more."""
    for part in parts:
        if part is not None:
            made.append(part)
        if monotonic() >= end_s:
            return False
    return True


def write_list(items: Sequence[Any]) -> Generator[None, None, bytes]:
    """As JSON, bit by bit: a library that writes it keeps all of Python's threads waiting."""
    bits = []
    for begin in range(0, len(items), INLINE_ITEMS):
        bits.append(orjson.dumps(items[begin : begin + INLINE_ITEMS])[1:-1])
        yield
    return join_list(bits)


def join_list(items: Iterable[bytes]) -> bytes:
    """Of JSON values."""
    return b"[" + b",".join(items) + b"]"
