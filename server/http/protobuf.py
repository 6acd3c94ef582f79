"""Messages of protocol buffers: dataclasses whose fields know their numbers, to and from the wire format.

    @dataclass(slots=True, eq=False)
    class Rank(Message):
        index: int = scalar(1, UINT32)
        text: str | None = optional(2, STRING)

Fields, tags and types are those of https://protobuf.dev/programming-guides/encoding, of proto3 without groups. Repeated
numbers are arrays, packed or not on their way in; `bytes` are views of what came, which is not copied. A map is, on the
wire, a repeated message of key and value, and here as well. Why not protobuf's own library: docs/decisions/0021.
"""

import dataclasses
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from server.errors import BodyTooLarge, InvalidBody

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""Wire types."""
SIZES = {FIXED64: 8, FIXED32: 4}
MAX_VARINT_BYTES = 10
Raw = bytes | memoryview
Numbers = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A scalar type. `dtype`: of numbers."""

    name: str
    wire: int
    default: Any
    dtype: str = ""


BOOL = Kind("bool", VARINT, False, "?")
INT32, INT64 = Kind("int32", VARINT, 0, "<i4"), Kind("int64", VARINT, 0, "<i8")
UINT32, UINT64 = Kind("uint32", VARINT, 0, "<u4"), Kind("uint64", VARINT, 0, "<u8")
ENUM = Kind("enum", VARINT, 0, "<i4")
FLOAT, DOUBLE = Kind("float", FIXED32, 0.0, "<f4"), Kind("double", FIXED64, 0.0, "<f8")
STRING, BYTES = Kind("string", LENGTH, ""), Kind("bytes", LENGTH, b"")


class Message:
    """Base of all messages: dataclasses of `scalar`, `optional` and `repeated` fields."""

    __slots__ = ()


Type = Kind | type[Message]
Parsed = TypeVar("Parsed", bound=Message)


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    number: int
    type: Any
    """A Kind, or a class of messages."""
    is_repeated: bool
    is_optional: bool
    """Told apart from its default: written whenever it is there."""

    @property
    def is_array(self) -> bool:
        return self.is_repeated and isinstance(self.type, Kind) and bool(self.type.dtype)


def scalar(number: int, kind: Kind) -> Any:
    return dataclasses.field(default=kind.default, metadata={"proto": (number, kind, False, False)})


def optional(number: int, of: Type) -> Any:
    """None where it is not there. What is a message is always so."""
    return dataclasses.field(default=None, metadata={"proto": (number, of, False, True)})


def repeated(number: int, of: Type) -> Any:
    """A list; of numbers an array."""
    metadata = {"proto": (number, of, True, False)}
    if isinstance(of, Kind) and of.dtype:
        dtype = of.dtype
        return dataclasses.field(default_factory=lambda: np.zeros(0, dtype), metadata=metadata)
    return dataclasses.field(default_factory=list, metadata=metadata)


def fields_of(message: Message) -> dict[int, Field]:
    """By number."""
    kind: Any = type(message)  # mypy does not take a class of messages for hashable
    return list_fields(kind)


@cache
def list_fields(message: Any) -> dict[int, Field]:
    found = (Field(each.name, *each.metadata["proto"]) for each in dataclasses.fields(message))
    return {field.number: field for field in found}


class Reader:
    """Parses one body. Mutable: how many fields it may still have, for each takes about as long as a text in a list.

    Raises InvalidBody, BodyTooLarge.
    """

    def __init__(self, max_fields: int) -> None:
        self.max_fields = self.num_left = max_fields

    def read(self, message: type[Parsed], raw: Raw) -> Parsed:
        parsed = message()
        self.fill(parsed, memoryview(raw))
        return parsed

    def fill(self, parsed: Message, raw: memoryview) -> None:
        """What comes later wins; of a message the fields do, one by one."""
        fields = fields_of(parsed)
        arrays: dict[str, list[Numbers]] = {}
        for number, wire, value in self.split(raw):
            field = fields.get(number)
            if field is None:
                continue
            if field.is_array:
                arrays.setdefault(field.name, []).extend(read_numbers(field.type, wire, value))
            elif isinstance(field.type, Kind):
                if wire == field.type.wire:
                    self.put(parsed, field, read_scalar(field, value))
            elif wire == LENGTH:
                self.put_message(parsed, field, value)
        for name, parts in arrays.items():
            setattr(parsed, name, parts[0] if len(parts) == 1 else np.concatenate(parts))

    def put(self, parsed: Message, field: Field, value: Any) -> None:
        if field.is_repeated:
            getattr(parsed, field.name).append(value)
        else:
            setattr(parsed, field.name, value)

    def put_message(self, parsed: Message, field: Field, raw: memoryview) -> None:
        known = None if field.is_repeated else getattr(parsed, field.name)
        inner = field.type() if known is None else known
        self.fill(inner, raw)
        if known is None:
            self.put(parsed, field, inner)

    def split(self, raw: memoryview) -> Iterator[tuple[int, int, Any]]:
        """Number, wire type, and an int of a VARINT, of others the bytes."""
        place, end = 0, len(raw)
        while place < end:
            self.count()
            key, place = read_varint(raw, place)
            number, wire = key >> 3, key & 7
            if wire == VARINT:
                value, place = read_varint(raw, place)
                yield number, wire, value
                continue
            if wire == LENGTH:
                size, place = read_varint(raw, place)
            elif wire in SIZES:
                size = SIZES[wire]
            else:
                raise InvalidBody(f"the message cannot be parsed: field {number} has wire type {wire}")
            if size > end - place or not number:
                raise InvalidBody(f"the message cannot be parsed: field {number} is longer than what it is in")
            yield number, wire, raw[place : place + size]
            place += size

    def count(self) -> None:
        self.num_left -= 1
        if self.num_left < 0:
            raise BodyTooLarge(
                f"the message has more than {self.max_fields} fields, items and their members counted; send several"
            )


def read_varint(raw: memoryview, place: int) -> tuple[int, int]:
    """The number, below 2**64, and where it ends. Raises InvalidBody."""
    value = 0
    for index, byte in enumerate(raw[place : place + MAX_VARINT_BYTES]):
        value |= (byte & 127) << (7 * index)
        if byte < 128:
            return value & 0xFFFF_FFFF_FFFF_FFFF, place + index + 1
    raise InvalidBody("the message cannot be parsed: a number does not end")


def read_scalar(field: Field, value: Any) -> Any:
    """Raises InvalidBody."""
    kind = field.type
    if kind is STRING:
        try:
            return str(value, "utf-8")
        except UnicodeDecodeError:
            raise InvalidBody(f"{field.name} is not UTF-8", param=field.name) from None
    if kind is BYTES:
        return value
    if kind.wire == VARINT:
        return cast_varints(kind, np.array([value], np.uint64))[0].item()
    return struct.unpack("<f" if kind is FLOAT else "<d", value)[0]


def read_numbers(kind: Kind, wire: int, value: Any) -> list[Numbers]:
    """Some entries of an array: packed, or one alone. Raises InvalidBody."""
    if wire == LENGTH and kind.wire == VARINT:
        return [cast_varints(kind, unpack_varints(value))]
    if wire == VARINT and kind.wire == VARINT:
        return [cast_varints(kind, np.array([value], np.uint64))]
    if wire not in (LENGTH, kind.wire):
        return []
    if len(value) % SIZES[kind.wire]:
        raise InvalidBody(f"the message cannot be parsed: a list of {kind.name} ends too early")
    return [np.frombuffer(value, kind.dtype)]


def unpack_varints(raw: memoryview) -> npt.NDArray[np.uint64]:
    """Raises InvalidBody."""
    octets = np.frombuffer(raw, np.uint8)
    if not len(octets):
        return np.zeros(0, np.uint64)
    ends = np.flatnonzero(octets < 128)
    lengths = np.diff(ends, prepend=-1)
    if octets[-1] >= 128 or lengths.max() > MAX_VARINT_BYTES:
        raise InvalidBody("the message cannot be parsed: a number does not end")
    starts = ends + 1 - lengths
    shifts = 7 * (np.arange(len(octets)) - np.repeat(starts, lengths))
    return np.bitwise_or.reduceat((octets & 127).astype(np.uint64) << shifts.astype(np.uint64), starts)


def cast_varints(kind: Kind, values: npt.NDArray[np.uint64]) -> Numbers:
    """As protobuf does: the lowest bits count, as two's complement."""
    return values != 0 if kind is BOOL else values.astype(kind.dtype)


def write(message: Message) -> bytes:
    return b"".join(write_fields(message))


def write_fields(message: Message) -> Iterator[bytes]:
    for field in fields_of(message).values():
        value = getattr(message, field.name)
        if field.is_array:
            if len(value):
                yield write_length(field.number, pack_numbers(field.type, np.asarray(value)))
        elif field.is_repeated:
            for each in value:
                yield write_value(field, each)
        elif value is not None and (field.is_optional or value != field.type.default):
            yield write_value(field, value)


def write_value(field: Field, value: Any) -> bytes:
    kind = field.type
    if not isinstance(kind, Kind):
        return write_length(field.number, write(value))
    if kind.wire == LENGTH:
        return write_length(field.number, value.encode() if kind is STRING else value)
    tag = write_varint(field.number << 3 | kind.wire)
    if kind.wire == VARINT:
        return tag + write_varint(int(value))
    return tag + struct.pack("<f" if kind is FLOAT else "<d", value)


def write_length(number: int, raw: Raw) -> bytes:
    return b"".join((write_varint(number << 3 | LENGTH), write_varint(len(raw)), raw))


def pack_numbers(kind: Kind, values: Numbers) -> bytes:
    if kind.wire == VARINT:
        return b"".join(write_varint(int(value)) for value in values)
    return values.astype(kind.dtype, copy=False).tobytes()


def write_varint(value: int) -> bytes:
    """Negative ones as two's complement of 64 bits."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    octets = bytearray()
    while value > 127:
        octets.append(value & 127 | 128)
        value >>= 7
    octets.append(value)
    return bytes(octets)
