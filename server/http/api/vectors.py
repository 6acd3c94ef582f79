"""Vectors as protocols write them: lists of numbers, or base64 of their bytes."""

import binascii
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

Vectors = npt.NDArray[Any]
"""`[num_rows, width]`, of any type in `tasks.vector_types`."""


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
