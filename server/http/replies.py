"""Answers are written at once, or, where they are long, beside the event loop."""

from collections.abc import Callable

from server.http.call import Reply
from server.http.state import ServedModel

INLINE_NUMBERS = 65_536
"""So many numbers of arrays are written on the event loop's thread, in 4 to 8 ms; 2,048 vectors of 1,024 take 150."""
INLINE_ITEMS = 8192
"""The same of what Python makes one by one, such as labels with scores: in 10 ms at most."""


async def write_reply(write: Callable[[], bytes | Reply], size: int, most: int, model: ServedModel) -> Reply:
    """What `write` gives: called here if it writes no more than `most`, else on one of the tokenizer's threads."""
    written = write() if size <= most else await model.tokenizer.run(write)
    return written if isinstance(written, Reply) else Reply(written)
