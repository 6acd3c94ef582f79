"""Answers are written at once, or, where they are long, beside the event loop."""

from collections.abc import Callable, Iterator
from functools import partial
from time import monotonic
from typing import TypeVar

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


async def make_parts(parts: Iterator[Part], size: int, most: int, model: ServedModel) -> list[Part]:
    """All of them, as they are made: here if that is no more work than `most`, else in turns on one of the tokenizer's
    threads, which others use between them."""
    if size <= most:
        return list(parts)
    made: list[Part] = []
    while turn := await model.tokenizer.run(partial(make_some, parts)):
        made += turn
    return made


def make_some(parts: Iterator[Part]) -> list[Part]:
    """For one turn, one at least; none where there are no more."""
    made, end_s = [], monotonic() + TURN_S
    for part in parts:
        made.append(part)
        if monotonic() >= end_s:
            break
    return made
