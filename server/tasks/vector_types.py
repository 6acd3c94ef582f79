"""What the numbers of an embedding may be written as: fewer bits for a little accuracy. Pure functions of rows."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]
"""`[num_rows, width]`."""
OutputType = Literal["float", "float16", "int8", "uint8", "binary", "ubinary"]

INT8_SCALE = 127
UINT8_ZERO = 128
FLOAT16_MAX = float(np.finfo(np.float16).max)


def measure_rows(rows: Rows) -> Rows:
    """fp32 `[num_rows]`: each row's length. NaN or infinity where a number of it is."""
    norms: Rows = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64)).astype(np.float32)
    return norms


def scale_rows(rows: Rows) -> Rows:
    """Each row divided by its length; zeros stay zeros."""
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    return np.ascontiguousarray(rows / np.maximum(norms, 1e-12)[:, None], dtype=np.float32)


def write_float16(rows: Rows) -> npt.NDArray[np.float16]:
    """`[num_rows, width]`, rounded to nearest; what is too large becomes the largest there is, 65,504."""
    return np.clip(rows, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16)


def write_int8(rows: Rows) -> npt.NDArray[np.int8]:
    """`[num_rows, width]`, -127 to 127: 127 times the row scaled to length 1, rounded to nearest, half to even.

    Cohere and Voyage give int8 vectors in -128 to 127 and say no more of them; both serve vectors of length 1, whose
    numbers lie in [-1, 1]. That range for all rows and columns needs no calibration and clips nothing, and products of
    rows compare as the cosines do.
    """
    return round_rows(rows).astype(np.int8)


def write_uint8(rows: Rows) -> npt.NDArray[np.uint8]:
    """`[num_rows, width]`: `write_int8` with 128 added, 1 to 255; 128 is zero."""
    return (round_rows(rows) + UINT8_ZERO).astype(np.uint8)


def round_rows(rows: Rows) -> Rows:
    """Whole numbers from -127 to 127; 0 for what is no number, which has no place among them."""
    return np.nan_to_num(np.rint(scale_rows(rows) * INT8_SCALE), nan=0.0, posinf=0.0, neginf=0.0)


def write_ubinary(rows: Rows) -> npt.NDArray[np.uint8]:
    """`[num_rows, ceil(width / 8)]`: a bit for each number, 1 where it is positive, the first in a byte's highest bit.

    The last byte is filled with zeros. As sentence_transformers.quantize_embeddings.
    """
    return np.packbits(rows > 0, axis=-1)


def write_binary(rows: Rows) -> npt.NDArray[np.int8]:
    """`[num_rows, ceil(width / 8)]`: the bytes of `write_ubinary` less 128, which is called offset binary."""
    return (write_ubinary(rows).astype(np.int16) - UINT8_ZERO).astype(np.int8)


def keep_float(rows: Rows) -> Rows:
    return rows


WRITERS: Mapping[OutputType, Callable[[Rows], npt.NDArray[Any]]] = {
    "float": keep_float,
    "float16": write_float16,
    "int8": write_int8,
    "uint8": write_uint8,
    "binary": write_binary,
    "ubinary": write_ubinary,
}
