"""Tensors of the Open Inference Protocol v2: out of JSON or out of the bytes behind it, and back.

With the binary extension a body is its JSON, whose length a header tells, and then the tensors' bytes in the order of
the inputs: little-endian, of BYTES each element behind its length. They are read where they lie in the body.
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from server.errors import InvalidField
from server.http.api.fields import Label, Options

DTYPES = {
    name: np.dtype(code)
    for name, code in (
        *(("BOOL", "?"), ("INT8", "<i1"), ("INT16", "<i2"), ("INT32", "<i4"), ("INT64", "<i8")),
        *(("UINT8", "<u1"), ("UINT16", "<u2"), ("UINT32", "<u4"), ("UINT64", "<u8")),
    )
}
"""Of inputs that are numbers: ids, masks, types."""
Given = memoryview | npt.NDArray[Any] | None
"""What an input's values came as: bytes, or numbers; None: they are its `data`."""
LENGTH = struct.Struct("<I")
MAX_DIMS = 8
MAX_INT64 = 2**63 - 1
"""No id, type or mask is as large, and that of all datatypes fits into it."""
Datatype = Literal["BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BYTES"]


class InputTensor(BaseModel):
    """`data`: nested as the shape says or flat, row by row; not there where it lies behind the JSON."""

    model_config = ConfigDict(extra="ignore")

    name: Label
    shape: Annotated[list[Annotated[StrictInt, Field(ge=0, le=1 << 40)]], Field(max_length=MAX_DIMS)]
    datatype: Datatype
    parameters: Options | None = None
    data: list[Any] | None = None

    @property
    def num_elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def binary_size(self) -> int | None:
        """Bytes behind the JSON; None where `data` is in it. Raises InvalidField."""
        size = (self.parameters or {}).get("binary_data_size")
        if size is not None and (not isinstance(size, int) or size < 0):
            raise InvalidField(f"inputs: binary_data_size of {self.name} must be a number of bytes", param="inputs")
        return size


def read_numbers(tensor: InputTensor, given: Given) -> npt.NDArray[np.int64]:
    """In the tensor's shape; of bytes a view, if they are int64. Raises InvalidField."""
    if tensor.datatype == "BYTES":
        raise InvalidField(f"inputs: {tensor.name} must hold whole numbers, and not BYTES", param="inputs")
    try:
        if isinstance(given, memoryview):
            values = np.frombuffer(given, DTYPES[tensor.datatype])
        else:
            values = np.array(tensor.data) if given is None else given
    except (ValueError, OverflowError):
        raise InvalidField(
            f"inputs: the data of {tensor.name} must be whole numbers, in rows of one length", param="inputs"
        ) from None
    if values.size != tensor.num_elements:
        raise InvalidField(
            f"inputs: {tensor.name} has {values.size} elements, and {tensor.shape} are {tensor.num_elements}",
            param="inputs",
        )
    if values.dtype.kind not in "biu" and values.size:
        raise InvalidField(f"inputs: the data of {tensor.name} must be whole numbers", param="inputs")
    check_range(tensor, values)
    return values.reshape(tensor.shape).astype(np.int64, copy=False)


def check_range(tensor: InputTensor, values: npt.NDArray[Any]) -> None:
    """Of numbers that may be any, whatever the datatype says. Raises InvalidField."""
    dtype = DTYPES[tensor.datatype]
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, min(np.iinfo(dtype).max, MAX_INT64))
    if values.size and (int(values.min()) < low or int(values.max()) > high):
        raise InvalidField(
            f"inputs: the data of {tensor.name} must be {tensor.datatype}, from {low} to {high}", param="inputs"
        )


def read_texts(tensor: InputTensor, raw: Given) -> list[str]:
    """Row by row. Raises InvalidField."""
    if tensor.datatype != "BYTES":
        raise InvalidField(f"inputs: {tensor.name} must be BYTES, which are texts", param="inputs")
    most = tensor.num_elements + 1  # one too many is enough to see that there are
    given = map(decode, split_bytes(raw)) if isinstance(raw, memoryview) else flatten(tensor.data or [])
    texts = list(islice(given, most))
    if len(texts) != tensor.num_elements:
        count = f"{'over ' if len(texts) == most else ''}{min(len(texts), tensor.num_elements)}"
        raise InvalidField(
            f"inputs: {tensor.name} has {count} elements, and {tensor.shape} are {tensor.num_elements}",
            param="inputs",
        )
    for text in texts:
        if not isinstance(text, str):
            raise InvalidField(f"inputs: the data of {tensor.name} must be strings", param="inputs")
    return texts


def flatten(data: Sequence[Any]) -> Iterator[Any]:
    """No deeper than a shape may be."""
    for item in data:
        if isinstance(item, list):
            yield from flatten(item)
        else:
            yield item


def split_bytes(raw: memoryview) -> Iterator[memoryview]:
    """Raises InvalidField where a length leads out of the tensor."""
    place = 0
    while place < len(raw):
        begin = place + LENGTH.size
        end = begin + LENGTH.unpack_from(raw, place)[0] if begin <= len(raw) else begin
        if end > len(raw):
            raise InvalidField("inputs: an element of a BYTES tensor is longer than the tensor", param="inputs")
        yield raw[begin:end]
        place = end


def decode(part: memoryview) -> str:
    try:
        return bytes(part).decode()
    except UnicodeDecodeError:
        raise InvalidField("inputs: an element of a BYTES tensor is not UTF-8", param="inputs") from None


def cut_tensors(tensors: Sequence[InputTensor], rest: memoryview) -> list[Given]:
    """The bytes of each tensor that has any behind the JSON. Raises InvalidField where there are more, or fewer."""
    parts: list[Given] = []
    place = 0
    for tensor in tensors:
        size = tensor.binary_size
        if (size is None) == (tensor.data is None):
            raise InvalidField(
                f"inputs: {tensor.name} must have either data or the parameter binary_data_size", param="inputs"
            )
        parts.append(None if size is None else rest[place : place + size])
        place += size or 0
    if place != len(rest):
        raise InvalidField(
            f"inputs: the tensors' binary_data_size are {place} bytes in all, and {len(rest)} follow the JSON",
            param="inputs",
        )
    return parts


def write_output(name: str, values: npt.NDArray[np.float32], *, is_binary: bool) -> tuple[dict[str, Any], bytes]:
    """The tensor's entry, and its bytes if they are to come behind the JSON."""
    entry: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
    if not is_binary:
        flat = np.ascontiguousarray(values).reshape(-1)
        return {**entry, "data": orjson.Fragment(orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY))}, b""
    raw = values.astype("<f4", copy=False).tobytes()
    return {**entry, "parameters": {"binary_data_size": len(raw)}}, raw
