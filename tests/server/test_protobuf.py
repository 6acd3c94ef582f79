"""Our messages against protobuf's own library, which is told of the same fields."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import BodyTooLarge, InvalidBody
from server.http import protobuf
from server.http.protobuf import Kind, Message, MessageReader, list_fields, optional, repeated, scalar, write


@dataclass(slots=True, eq=False)
class Inner(Message):
    count: int = scalar(1, protobuf.INT32)
    names: list[str] = repeated(7, protobuf.STRING)
    again: Any = optional(3, protobuf.BOOL)


@dataclass(slots=True, eq=False)
class Everything(Message):
    flag: bool = scalar(1, protobuf.BOOL)
    small: int = scalar(2, protobuf.INT32)
    large: int = scalar(3, protobuf.INT64)
    small_natural: int = scalar(4, protobuf.UINT32)
    large_natural: int = scalar(5, protobuf.UINT64)
    choice: int = scalar(6, protobuf.ENUM)
    single: float = scalar(16, protobuf.FLOAT)
    double: float = scalar(17, protobuf.DOUBLE)
    text: str = scalar(18, protobuf.STRING)
    raw: bytes = scalar(19, protobuf.BYTES)
    maybe: str | None = optional(20, protobuf.STRING)
    inner: Inner | None = optional(21, Inner)
    inners: list[Inner] = repeated(22, Inner)
    flags: protobuf.Numbers = repeated(23, protobuf.BOOL)
    smalls: protobuf.Numbers = repeated(24, protobuf.INT32)
    larges: protobuf.Numbers = repeated(25, protobuf.INT64)
    naturals: protobuf.Numbers = repeated(26, protobuf.UINT64)
    singles: protobuf.Numbers = repeated(27, protobuf.FLOAT)
    doubles: protobuf.Numbers = repeated(2000, protobuf.DOUBLE)
    texts: list[str] = repeated(29, protobuf.STRING)


def build_oracle() -> Any:
    """protobuf's class of Everything, by the same names and numbers."""
    file = descriptor_pb2.FileDescriptorProto(name="oracle.proto", package="oracle", syntax="proto3")
    for kind in (Inner, Everything):
        message = file.message_type.add(name=kind.__name__)
        for field in list_fields(kind).values():
            entry = message.field.add(name=field.name, number=field.number)
            entry.label = entry.LABEL_REPEATED if field.is_repeated else entry.LABEL_OPTIONAL
            if not isinstance(field.type, Kind):
                entry.type, entry.type_name = entry.TYPE_MESSAGE, f".oracle.{field.type.__name__}"
                continue
            name = "int32" if field.type.name == "enum" else field.type.name
            entry.type = getattr(entry, f"TYPE_{name.upper()}")
            if field.is_optional:
                entry.proto3_optional, entry.oneof_index = True, len(message.oneof_decl)
                message.oneof_decl.add(name=f"_{field.name}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("oracle.Everything"))


ORACLE = build_oracle()
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INT32, INT64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
UINT32, UINT64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
FLOATS = st.floats(width=32, allow_nan=False).map(lambda value: value + 0.0)  # -0.0 is 0.0 here, and left out
DOUBLES = st.floats(allow_nan=False).map(lambda value: value + 0.0)
INNERS = st.fixed_dictionaries(
    {}, optional={"count": INT32, "names": st.lists(TEXTS, max_size=3), "again": st.booleans()}
)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "flag": st.booleans(),
        "small": INT32,
        "large": INT64,
        "small_natural": UINT32,
        "large_natural": UINT64,
        "choice": INT32,
        "single": FLOATS,
        "double": DOUBLES,
        "text": TEXTS,
        "raw": st.binary(max_size=20),
        "maybe": TEXTS,
        "inner": INNERS,
        "inners": st.lists(INNERS, max_size=3),
        "flags": st.lists(st.booleans()),
        "smalls": st.lists(INT32, max_size=40),
        "larges": st.lists(INT64, max_size=40),
        "naturals": st.lists(UINT64),
        "singles": st.lists(FLOATS),
        "doubles": st.lists(DOUBLES),
        "texts": st.lists(TEXTS),
    },
)


def build(kind: type[Any], values: dict[str, Any]) -> Any:
    """Our message of what protobuf's constructor takes as it is."""
    fields = {field.name: field for field in list_fields(kind).values()}

    def convert(name: str, value: Any) -> Any:
        field = fields[name]
        if field.is_array:
            return np.array(value, field.type.dtype)
        if isinstance(field.type, Kind):
            return value
        return [build(Inner, each) for each in value] if field.is_repeated else build(Inner, value)

    return kind(**{name: convert(name, value) for name, value in values.items()})


def dump(message: Any) -> dict[str, Any]:
    """For comparison."""

    def plain(value: Any) -> Any:
        if isinstance(value, Message):
            return dump(value)
        if isinstance(value, list):
            return [plain(each) for each in value]
        if isinstance(value, memoryview):
            return bytes(value)
        return value.tolist() if isinstance(value, np.ndarray) else value

    return {field.name: plain(getattr(message, field.name)) for field in dataclasses.fields(message)}


def read(raw: bytes) -> Everything:
    return MessageReader(10_000).read(Everything, raw)


@given(VALUES)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_what_protobuf_reads(values: dict[str, Any]) -> None:
    assert ORACLE.FromString(write(build(Everything, values))) == ORACLE(**values)


@given(VALUES)
@settings(max_examples=60, deadline=None)
def test_what_protobuf_writes_is_read(values: dict[str, Any]) -> None:
    assert dump(read(ORACLE(**values).SerializeToString())) == dump(build(Everything, values))


@given(VALUES, VALUES)
@settings(max_examples=40, deadline=None)
def test_two_messages_end_to_end_are_merged(first: dict[str, Any], second: dict[str, Any]) -> None:
    raw = ORACLE(**first).SerializeToString() + ORACLE(**second).SerializeToString()
    assert ORACLE.FromString(write(read(raw))) == ORACLE.FromString(raw)


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_message_or_a_clear_error(raw: bytes) -> None:
    try:
        ours = read(raw)
    except InvalidBody:
        return
    assert ORACLE.FromString(write(ours)) is not None


def test_numbers_may_come_one_by_one() -> None:
    raw = b"\xc0\x01\x05\xc0\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" + b"\xc2\x01\x01\x07" + b"\xdd\x01\0\0\x80?"
    assert read(raw).smalls.tolist() == [5, -1, 7] and read(raw).singles.tolist() == [1.0]


@pytest.mark.parametrize(
    "raw",
    [
        b"\x08",
        b"\x08\x80",
        b"\x08" + b"\xff" * 10,
        b"\x92\x01\x05abc",
        b"\x92\x01\x01\xff",
        b"\xc2\x01\x01\x80",
        b"\xc2\x01\x3b" + b"\x01" * 48 + b"\xff" * 10 + b"\x01",
        b"\xc2\x01\x30" + b"\x01" * 47 + b"\x80",
        b"\xda\x01\x03abc",
        b"\x0b\x0c",
        b"\xaa\x01\x02\x08\x80",
        b"\x8d\x01\0\0",
    ],
    ids=[
        "no value",
        "a number without end",
        "a number of 11 bytes",
        "longer than the message",
        "no UTF-8",
        "a packed number without end",
        "a packed number of 11 bytes",
        "the last of many packed numbers without end",
        "half a float",
        "a group",
        "a broken inner message",
        "half a fixed number",
    ],
)
def test_broken_messages(raw: bytes) -> None:
    with pytest.raises(InvalidBody):
        read(raw)


def test_what_is_not_known_is_skipped() -> None:
    unknown = b"\xfa\x3e\x02hi" + b"\xf8\x3e\x01" + b"\xfd\x3e\0\0\0\0" + b"\xf9\x3e\0\0\0\0\0\0\0\0"
    of_another_type = b"\x0a\x01a" + b"\x95\x01\0\0\0\0" + b"\xa8\x01\x01" + b"\xda\x01\0"
    assert dump(read(unknown + of_another_type)) == dump(Everything())


def test_bytes_are_not_copied() -> None:
    raw = write(Everything(raw=b"tensor"))
    found = read(raw).raw
    assert isinstance(found, memoryview) and found.obj is raw


def test_a_message_has_so_many_fields_and_no_more() -> None:
    """Of inner messages too: a body of small fields would hold the event loop for seconds."""
    raw = write(Everything(inners=[Inner(count=1)] * 4))
    assert len(MessageReader(80).read(Everything, raw).inners) == 4
    with pytest.raises(BodyTooLarge, match="may be 79 in all"):
        MessageReader(79).read(Everything, raw)


@pytest.mark.parametrize("value", [1, -1])
def test_and_so_many_numbers_in_lists(value: int) -> None:
    """One field holds any number of them."""
    raw = write(Everything(larges=np.full(100, value)))
    assert (MessageReader(110).read(Everything, raw).larges == np.full(100, value)).all()
    with pytest.raises(BodyTooLarge, match="too many values"):
        MessageReader(109).read(Everything, raw)
