"""What goes into the socket comes out of it, whatever it is and however it is cut into pieces."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.batch import ArraySpec
from runtime.engine import EngineInfo
from server.wire.job import TokenSequence
from server.wire.messages import (
    Answered,
    Cancel,
    Failed,
    Message,
    Status,
    Submit,
    decode_call,
    encode_call,
    frame,
    read_message,
)

numbers = st.integers(0, 2**31 - 1)
seconds = st.floats(0, 1e9)
specs = st.builds(
    ArraySpec,
    st.text(max_size=5),
    st.text(max_size=5),
    st.lists(st.one_of(numbers, st.text(max_size=9)), max_size=3).map(tuple),
)
infos = st.builds(
    EngineInfo,
    kind=st.text(max_size=5),
    precision=st.text(max_size=5),
    precision_reason=st.text(),
    device=st.text(max_size=5),
    threads=numbers,
    outputs=st.lists(specs, max_size=3).map(tuple),
    unplanned_ops=st.lists(st.text(max_size=9), max_size=3).map(tuple),
)
messages = st.one_of(
    st.builds(Submit, numbers, seconds, st.binary(), st.binary(), st.binary()),
    st.builds(Cancel, numbers),
    st.builds(Answered, numbers, st.binary(), seconds, seconds),
    st.builds(Failed, numbers, st.text(), st.text()),
    st.builds(Status, st.booleans(), st.text(), numbers, seconds, st.none() | infos),
)
sequences = st.lists(
    st.tuples(st.lists(numbers, min_size=1, max_size=9), st.booleans()).map(
        lambda drawn: TokenSequence(
            np.array(drawn[0], np.int32), np.ones(len(drawn[0]), np.int32) if drawn[1] else None
        )
    ),
    min_size=1,
    max_size=6,
)


async def read_all(data: bytes, piece: int) -> list[Message]:
    reader = asyncio.StreamReader()
    for start in range(0, len(data), piece):
        reader.feed_data(data[start : start + piece])
    reader.feed_eof()
    found: list[Message] = []
    while not reader.at_eof():
        found.append(await read_message(reader))
    return found


@given(st.lists(messages, max_size=4), st.integers(1, 50))
@settings(deadline=None)
def test_messages_survive_the_stream(sent: list[Message], piece: int) -> None:
    assert asyncio.run(read_all(b"".join(frame(message) for message in sent), piece)) == sent


@given(sequences, numbers, seconds)
@settings(deadline=None)
def test_calls_survive_encoding(given_sequences: list[TokenSequence], call_id: int, deadline_s: float) -> None:
    message = encode_call(call_id, given_sequences, deadline_s)
    assert (message.call_id, message.deadline_s) == (call_id, deadline_s)
    decoded = decode_call(message)
    assert len(decoded) == len(given_sequences)
    for mine, theirs in zip(given_sequences, decoded, strict=True):
        np.testing.assert_array_equal(mine.input_ids, theirs.input_ids)
        types = np.zeros(mine.num_tokens) if mine.token_type_ids is None else mine.token_type_ids
        has_types = theirs.token_type_ids is not None
        np.testing.assert_array_equal(types, theirs.token_type_ids if has_types else np.zeros(theirs.num_tokens))


def test_token_types_are_left_out_where_nobody_has_any() -> None:
    message = encode_call(1, [TokenSequence(np.arange(5, dtype=np.int32))], 1.0)
    assert message.token_type_ids == b""
    assert decode_call(message)[0].token_type_ids is None


def test_strided_and_wider_ids_are_sent_by_value() -> None:
    every_other = np.arange(10)[::2]
    (decoded,) = decode_call(encode_call(1, [TokenSequence(every_other)], 1.0))  # type: ignore[arg-type]
    assert decoded.input_ids.tolist() == [0, 2, 4, 6, 8]
    assert decoded.input_ids.dtype == np.int32


@pytest.mark.parametrize("kept", [0, 2, 6])
def test_stream_that_ends_within_a_message_is_an_end(kept: int) -> None:
    with pytest.raises(asyncio.IncompleteReadError):
        asyncio.run(read_one(frame(Cancel(7))[:kept]))


async def read_one(data: bytes) -> Message:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return await read_message(reader)
