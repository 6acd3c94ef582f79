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
SHORT_BYTES = 40
"""Shapes: so few numbers are read sooner one by one."""
FIELD_WEIGHT = 10
"""What a field costs, in items of a list of JSON (`body_limits`): 1 us. A number of a packed list is an item."""
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
    """`type`: a Kind, or a class of messages. `wire`: of one entry. `is_optional`: told apart from its default, written
    whenever it is there. `is_array`: of numbers."""

    name: str
    number: int
    type: Any
    wire: int
    is_repeated: bool
    is_optional: bool
    is_message: bool
    is_array: bool


def scalar(number: int, kind: Kind) -> Any:
    return dataclasses.field(default=kind.default, metadata={"proto": (number, kind, False, False)})


def optional(number: int, of: Type) -> Any:
    """None where it is not there. What is a message is always so."""
    return dataclasses.field(default=None, metadata={"proto": (number, of, False, True)})


def repeated(number: int, of: Type) -> Any:
    """A list; of numbers an array."""
    metadata = {"proto": (number, of, True, False)}
    if isinstance(of, Kind) and of.dtype:
        nothing = np.zeros(0, of.dtype)
        return dataclasses.field(default_factory=lambda: nothing, metadata=metadata)
    return dataclasses.field(default_factory=list, metadata=metadata)


def fields_of(message: Message) -> dict[int, Field]:
    """By number."""
    kind: Any = type(message)  # mypy does not take a class of messages for hashable
    return list_fields(kind)


@cache
def list_fields(message: Any) -> dict[int, Field]:
    found = (describe_field(each.name, *each.metadata["proto"]) for each in dataclasses.fields(message))
    return {field.number: field for field in found}


def describe_field(name: str, number: int, of: Type, is_repeated: bool, is_optional: bool) -> Field:
    is_message = not isinstance(of, Kind)
    wire, dtype = (of.wire, of.dtype) if isinstance(of, Kind) else (LENGTH, "")
    return Field(name, number, of, wire, is_repeated, is_optional, is_message, is_repeated and bool(dtype))


class MessageReader:
    """Parses one body. Mutable: what it may still hold, counted as items of a list of JSON are.

    Raises InvalidBody, BodyTooLarge.
    """

    def __init__(self, max_items: int) -> None:
        self.max_items = self.num_left = max_items

    def read(self, message: type[Parsed], raw: Raw) -> Parsed:
        parsed = message()
        self.fill(parsed, memoryview(raw))
        return parsed

    def fill(self, parsed: Message, raw: memoryview) -> None:
        """What comes later wins; of a message the fields do, one by one. A tag or a length is nearly always one byte,
        which is read here: a call for each takes twice the time."""
        known = fields_of(parsed)
        arrays: dict[str, list[Numbers]] = {}
        place, end = 0, len(raw)
        while place < end:
            self.num_left -= FIELD_WEIGHT
            if self.num_left < 0:
                raise self.make_too_large()
            key = raw[place]
            place += 1
            if key > 127:
                key, place = read_varint(raw, place - 1)
            wire = key & 7
            value: Any
            if wire == VARINT:
                value, place = read_varint(raw, place)
            else:
                if wire != LENGTH:
                    size = find_size(key)
                elif place < end and raw[place] < 128:
                    size = raw[place]
                    place += 1
                else:
                    size, place = read_varint(raw, place)
                begin, place = place, place + size
                if place > end:
                    raise InvalidBody(f"the message cannot be parsed: field {key >> 3} is longer than what it is in")
                value = raw[begin:place]
            field = known.get(key >> 3)
            if field is not None and field.is_array:
                if wire == LENGTH and field.type.wire == VARINT:
                    self.charge(value)
                arrays.setdefault(field.name, []).extend(read_numbers(field.type, wire, value))
            elif field is not None and wire == field.wire:
                self.put(parsed, field, value)
        for name, parts in arrays.items():
            setattr(parsed, name, parts[0] if len(parts) == 1 else np.concatenate(parts))

    def charge(self, packed: memoryview) -> None:
        """For its numbers: one field holds any number of them, and each is a number of JSON once it has been read.
        Those of a fixed size are not read but taken as they lie. Raises BodyTooLarge."""
        if len(packed) > SHORT_BYTES:
            self.num_left -= int(np.count_nonzero(np.frombuffer(packed, np.uint8) < 128))
            if self.num_left < 0:
                raise self.make_too_large()

    def make_too_large(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"the message has too many values: numbers of lists, and fields, which count {FIELD_WEIGHT} each, may be "
            f"{self.max_items} in all; send several messages"
        )

    def put(self, parsed: Message, field: Field, value: Any) -> None:
        if field.is_repeated:
            inner = field.type() if field.is_message else read_scalar(field, value)
            getattr(parsed, field.name).append(inner)
        else:
            known = getattr(parsed, field.name) if field.is_message else None
            inner = (known or field.type()) if field.is_message else read_scalar(field, value)
            setattr(parsed, field.name, inner)
        if field.is_message:
            self.fill(inner, value)


def find_size(key: int) -> int:
    """Of a number of a fixed size. Raises InvalidBody."""
    size = SIZES.get(key & 7)
    if size is None:
        raise InvalidBody(f"the message cannot be parsed: field {key >> 3} has wire type {key & 7}")
    return size


def read_varint(raw: memoryview, place: int) -> tuple[int, int]:
    """The number, below 2**64, and where it ends. Raises InvalidBody."""
    if place < len(raw) and raw[place] < 128:
        return raw[place], place + 1
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
        return cast_varint(kind, value)
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
    if len(raw) <= SHORT_BYTES:
        values, place = [], 0
        while place < len(raw):
            value, place = read_varint(raw, place)
            values.append(value)
        return np.array(values, np.uint64)
    octets = np.frombuffer(raw, np.uint8)
    ends = np.flatnonzero(octets < 128)
    lengths = np.diff(ends, prepend=-1)
    if octets[-1] >= 128 or lengths.max() > MAX_VARINT_BYTES:
        raise InvalidBody("the message cannot be parsed: a number does not end")
    starts = ends + 1 - lengths
    numbers = (octets[starts] & 127).astype(np.uint64)
    for index in range(1, int(lengths.max())):
        longer = np.flatnonzero(lengths > index)
        numbers[longer] |= (octets[starts[longer] + index] & 127).astype(np.uint64) << np.uint64(7 * index)
    return numbers


def cast_varint(kind: Kind, value: int) -> int | bool:
    """As protobuf does: the lowest bits count, as two's complement."""
    if kind is BOOL:
        return value != 0
    num_bits = 64 if kind in (INT64, UINT64) else 32
    value &= (1 << num_bits) - 1
    return value - (1 << num_bits) if kind in (INT32, INT64, ENUM) and value >> (num_bits - 1) else value


def cast_varints(kind: Kind, values: npt.NDArray[np.uint64]) -> Numbers:
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
