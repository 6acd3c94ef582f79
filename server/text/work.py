"""How a call wants its inputs as tokens, and what is too long for that."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from server.errors import EmptyInput, InputTooLong
from server.text.pairs import SharedText
from server.text.truncation import Reading

Truncation = Literal["error", "right", "left"]


class Work(NamedTuple):
    """How a call wants its inputs: of up to `max_tokens`. `is_inline`: on the event loop's thread. `cuts_first`,
    `stride`: see `Tokenizer.encode` and `locate_all`. `shared`: what several pairs begin with."""

    truncation: Truncation
    field: str
    add_special_tokens: bool
    is_inline: bool
    max_tokens: int
    cuts_first: bool = False
    stride: int | None = None
    max_windows: int = 0
    shared: Mapping[str, SharedText] = {}


def choose_part(num_tokens: int, work: Work) -> slice:
    """What is kept of so many. Raises EmptyInput, InputTooLong."""
    if not num_tokens:
        raise EmptyInput("must not be empty")
    if num_tokens <= work.max_tokens:
        return slice(None)
    if work.truncation == "error":
        raise make_too_long(str(num_tokens), work)
    return slice(work.max_tokens) if work.truncation == "right" else slice(-work.max_tokens, None)


def check_certain(reading: Reading, work: Work) -> None:
    """Raises InputTooLong."""
    num_tokens = reading.count_certain()
    if num_tokens > work.max_tokens:
        raise make_too_long(str(num_tokens) if reading.is_whole else f"more than {work.max_tokens}", work)


def make_too_long(num_tokens: str, work: Work) -> InputTooLong:
    return InputTooLong(f"has {num_tokens} tokens; the limit is {work.max_tokens}; shorten it")
