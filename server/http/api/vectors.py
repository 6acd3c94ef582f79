"""Vectors as protocols write them: lists of numbers, or base64 of their bytes."""

import binascii
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from server.http.call import Reply
from server.http.state import ServedModel

Vectors = npt.NDArray[Any]
"""`[num_rows, width]`, of any type in `tasks.vector_types`."""
INLINE_VALUES = 65_536
"""So many numbers are written on the event loop's thread, in 4 to 8 ms; 2,048 vectors of 1,024 take 150."""


def encode_rows(rows: Vectors, *, is_base64: bool = False) -> list[orjson.Fragment | str]:
    """Row by row: between two of them others have their turn at the GIL."""
    encode: Callable[[Vectors], Any] = encode_base64 if is_base64 else encode_numbers
    return [encode(row) for row in np.ascontiguousarray(rows)]


def encode_numbers(row: Vectors) -> orjson.Fragment:
    return orjson.Fragment(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY))


def encode_base64(row: Vectors) -> str:
    """Of the numbers' own type, little-endian: float32 is what OpenAI's clients decode."""
    little = row.astype(row.dtype.newbyteorder("<"), copy=False)
    return binascii.b2a_base64(little.tobytes(), newline=False).decode("ascii")


async def write_reply(write: Callable[[], bytes], num_values: int, model: ServedModel) -> Reply:
    """What `write` gives, beside the event loop where it takes long."""
    return Reply(write() if num_values <= INLINE_VALUES else await model.tokenizer.run(write))
