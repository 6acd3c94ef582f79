"""What goes into the socket comes out of it, whatever it is and however it is cut into pieces."""

import asyncio
import tracemalloc
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.batch import ArraySpec
from runtime.engine import EngineInfo
from server.errors import DeadlineExceeded, EngineFailure, EngineUnavailable, ServiceError, Unservable
from server.tasks.embed import EmbedParams
from server.wire.generation import AnswerNews, GenerationParams, TokenLogprob, pack_logprob, read_news, write_news
from server.wire.job import Array, Job, Ragged, Result, TokenSequence, join_rows, write_inputs
from server.wire.messages import (
    Cancel,
    Failure,
    Message,
    Results,
    Status,
    Submit,
    WireArray,
    frame,
    read_job,
    read_message,
    read_result,
    write_failure,
    write_job,
    write_result,
)
from server.wire.processors import (
    BadWords,
    ForcedBegin,
    ForcedEnd,
    LogitBias,
    MinTokens,
    NoRepeatNgrams,
    NoSourceNgrams,
    SuppressedAtBegin,
    SuppressedTokens,
    Timestamps,
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
wire_arrays = st.dictionaries(
    st.text(max_size=9),
    st.builds(
        WireArray, st.text(max_size=3), st.lists(numbers, max_size=3).map(tuple), st.binary(), st.binary(max_size=9)
    ),
    max_size=3,
)
messages = st.one_of(
    st.builds(
        Submit,
        numbers,
        st.text(max_size=9),
        wire_arrays,
        seconds,
        st.binary(),
        st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=2),
        st.integers(-9, 9),
        st.text(max_size=9),
    ),
    st.builds(Cancel, numbers, st.lists(numbers, max_size=3).map(tuple)),
    st.builds(
        Results,
        numbers,
        st.binary(),
        wire_arrays,
        st.booleans(),
        seconds,
        seconds,
        st.none() | st.builds(Failure, st.text(), st.text(), st.none() | st.text()),
    ),
    st.builds(Status, st.booleans(), st.text(), seconds, st.none() | infos),
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


def send(message: Message) -> Any:
    """What comes out of the other end."""
    return asyncio.run(read_all(frame(message), 1 << 20))[0]


@given(st.lists(messages, max_size=4), st.integers(1, 50))
@settings(deadline=None, max_examples=40)
def test_messages_survive_the_stream(sent: list[Message], piece: int) -> None:
    assert asyncio.run(read_all(b"".join(frame(message) for message in sent), piece)) == sent


@pytest.mark.parametrize("kept", [0, 2, 6])
def test_stream_that_ends_within_a_message_is_an_end(kept: int) -> None:
    with pytest.raises(asyncio.IncompleteReadError):
        asyncio.run(read_one(frame(Cancel(7))[:kept]))


async def read_one(data: bytes) -> Message:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return await read_message(reader)


@given(sequences, numbers, seconds, st.integers(-9, 9), st.text(max_size=9), st.none() | numbers)
@settings(deadline=None)
def test_jobs_survive_the_wire(
    given_sequences: list[TokenSequence],
    job_id: int,
    timeout_s: float,
    priority: int,
    salt: str,
    dimensions: int | None,
) -> None:
    params, outputs = EmbedParams(dimensions), {"embeddings": "mood.embeddings"}
    given_job = Job("embed", write_inputs(given_sequences), timeout_s, params, outputs, priority, salt)
    message = send(write_job(job_id, given_job))
    assert message.job_id == job_id
    job = read_job(message, EmbedParams)
    assert (job.task, job.timeout_s, job.params) == ("embed", timeout_s, params)
    assert (job.outputs, job.priority, job.salt) == (outputs, priority, salt)
    has_types = any(sequence.token_type_ids is not None for sequence in given_sequences)
    assert set(job.inputs) == ({"input_ids", "token_type_ids"} if has_types else {"input_ids"})
    for index, sequence in enumerate(given_sequences):
        np.testing.assert_array_equal(job.input_ids.row(index), sequence.input_ids)
        if has_types:
            types = np.zeros(sequence.num_tokens) if sequence.token_type_ids is None else sequence.token_type_ids
            np.testing.assert_array_equal(job.inputs["token_type_ids"].row(index), types)


def test_params_of_a_generation_survive_the_wire() -> None:
    params = GenerationParams(
        7,
        num_sequences=3,
        processors=(
            LogitBias((5, 7), (-100.0, 2.5)),
            BadWords(((1, 2), (3,))),
            MinTokens(2),
            SuppressedTokens((4,)),
            SuppressedAtBegin((4, 5), 1),
            NoRepeatNgrams(3),
            NoSourceNgrams(2),
            ForcedBegin(9),
            ForcedEnd((2,)),
            Timestamps(20, 19, 15),
        ),
        stop_token_ids=(2,),
        early_stopping="never",
        seed=1 << 60,
        grammar=("regex", "a+"),
    )
    job = Job("generate", write_inputs([TokenSequence(np.arange(3, dtype=np.int32))]), 1.0, params)
    assert read_job(send(write_job(1, job)), GenerationParams).params == params


def test_params_of_another_task_are_refused() -> None:
    job = Job("generate", write_inputs([TokenSequence(np.arange(3, dtype=np.int32))]), 1.0, EmbedParams(3))
    with pytest.raises(msgspec.ValidationError):
        read_job(send(write_job(1, job)), GenerationParams)


def test_strided_arrays_are_sent_by_value() -> None:
    inputs = {"input_ids": Ragged(np.arange(10, dtype=np.int32)[::2], np.array([0, 2, 5], np.int32))}
    job = read_job(send(write_job(1, Job("embed", inputs, 1.0, EmbedParams()))), EmbedParams)
    assert [job.input_ids.row(index).tolist() for index in range(2)] == [[0, 2], [4, 6, 8]]
    assert job.input_ids.values.dtype == np.int32


@pytest.mark.parametrize(
    "array",
    [
        Ragged(np.arange(12, dtype=np.float32).reshape(3, 4)),
        Ragged(np.arange(12, dtype=np.float16).reshape(6, 2), np.array([0, 1, 1, 6], np.int32)),
        Ragged(np.zeros((3, 0), np.int8)),
        Ragged(np.array([1, -5, 2**40])),
    ],
    ids=["vectors", "rows of tokens", "nothing", "wide numbers"],
)
def test_results_survive_the_wire(array: Ragged) -> None:
    result = Result(np.array([4, 0, 7], np.int32), {"found": array}, False, 0.25, 0.5)
    found = read_result(send(write_result(3, result)))
    assert isinstance(found, Result)
    assert (found.rows.tolist(), found.is_last, found.queue_s, found.engine_s) == ([4, 0, 7], False, 0.25, 0.5)
    assert found.arrays["found"].values.dtype == array.values.dtype
    assert len(found.arrays["found"]) == len(array) == 3
    for index in range(3):
        np.testing.assert_array_equal(found.arrays["found"].row(index), array.row(index))


@pytest.mark.parametrize(
    "error",
    [EngineUnavailable("so"), DeadlineExceeded("it"), EngineFailure("goes"), Unservable("shorten", "max_tokens")],
)
def test_failures_survive_the_wire(error: ServiceError) -> None:
    found = read_result(send(write_failure(3, error)))
    assert type(found) is type(error)
    assert isinstance(found, ServiceError)
    assert (found.message, found.param) == (error.message, error.param)


class TestRagged:
    """Rows of any length, end to end."""

    rows: tuple[Array, ...] = (np.array([1, 2]), np.array([], np.int64), np.array([3]), np.array([4, 5, 6]))

    def test_rows_come_out_as_they_went_in(self) -> None:
        ragged = join_rows(self.rows)
        assert len(ragged) == 4 and ragged.lengths.tolist() == [2, 0, 1, 3]
        for index, row in enumerate(self.rows):
            np.testing.assert_array_equal(ragged.row(index), row)

    @given(st.integers(0, 4), st.integers(0, 4))
    def test_cut_is_some_rows_in_a_row(self, one: int, other: int) -> None:
        first, last = sorted((one, other))
        part = join_rows(self.rows).cut(first, last)
        assert [part.row(index).tolist() for index in range(len(part))] == [
            row.tolist() for row in self.rows[first:last]
        ]

    def test_pick_is_rows_in_any_order(self) -> None:
        part = join_rows(self.rows).pick([3, 0, 3])
        assert [part.row(index).tolist() for index in range(3)] == [[4, 5, 6], [1, 2], [4, 5, 6]]

    def test_without_splits_each_entry_is_a_row(self) -> None:
        ragged = Ragged(np.arange(6).reshape(3, 2))
        assert len(ragged) == 3 and ragged.lengths.tolist() == [1, 1, 1]
        assert ragged.row(1).tolist() == [[2, 3]]
        assert ragged.cut(1, 3).values.tolist() == [[2, 3], [4, 5]]
        assert ragged.pick([2, 0]).values.tolist() == [[4, 5], [0, 1]]


def test_part_of_a_job_is_about_some_of_its_inputs() -> None:
    types = np.ones(2, np.int32)
    inputs = write_inputs(
        [TokenSequence(np.arange(3, dtype=np.int32)), TokenSequence(np.arange(2, dtype=np.int32), types)]
    )
    job = Job("embed", inputs, 1.0, num_answer_tokens=10)
    assert (job.num_inputs, job.num_tokens, job.load_tokens) == (2, 5, 25)
    part = job.cut(1, 2)
    assert part.input_ids.row(0).tolist() == [0, 1] and part.inputs["token_type_ids"].row(0).tolist() == [1, 1]
    assert (part.num_inputs, part.load_tokens, part.timeout_s) == (1, 12, 1.0)
    assert job.cut(0, 2) is job


def pack_pairs(logprob: float, pairs: list[tuple[int, float]]) -> TokenLogprob:
    ids, values = np.array([pair[0] for pair in pairs], np.int32), np.array([pair[1] for pair in pairs])
    packed = pack_logprob(logprob, ids, values)
    assert packed.top == pairs
    return packed


logprobs = st.builds(
    pack_pairs, st.floats(-50, 0, width=32), st.lists(st.tuples(numbers, st.floats(-50, 0, width=32)), max_size=3)
)


@st.composite
def draw_news(draw: st.DrawFn) -> AnswerNews:
    token_ids = tuple(draw(st.lists(numbers, max_size=4)))
    return AnswerNews(
        draw(numbers),
        token_ids,
        tuple(draw(logprobs) for _ in token_ids) if draw(st.booleans()) else (),
        draw(st.sampled_from(["", "stop", "length"])),
        draw(st.sampled_from([0, 0, 48])),
        tuple(draw(st.lists(logprobs, max_size=3))),
        draw(st.none() | st.floats(-50, 0)),
    )


@given(st.lists(draw_news(), min_size=1, max_size=5), st.booleans())
@settings(deadline=None)
def test_news_of_answers_survive_as_arrays(news: list[AnswerNews], is_last: bool) -> None:
    result = read_result(send(write_result(1, write_news(news, is_last=is_last))))
    assert isinstance(result, Result)
    assert result.is_last == is_last
    assert read_news(result) == news


def test_logprobs_are_held_in_a_few_hundred_bytes() -> None:
    """An answer's tokens with 20 others each; as tuples of numbers they took 2.5 kB."""
    news = [AnswerNews(0, (17,), (pack_pairs(-1.5, [(1000 + rank, -0.1 * rank) for rank in range(20)]),))]
    result = read_result(send(write_result(1, write_news(news, is_last=False))))
    assert isinstance(result, Result)
    read_news(result)
    tracemalloc.start()
    held = [read_news(result)[0].logprobs for _ in range(1000)]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / len(held) < 600 and held[0] == news[0].logprobs


def test_one_token_crosses_as_one_small_array() -> None:
    """Most news are that; what would be empty is left out."""
    result = write_news([AnswerNews(0, (17,))], is_last=False)
    assert set(result.arrays) == {"token_ids"}
    assert read_news(result) == [AnswerNews(0, (17,))]
    assert read_news(replace(result, rows=result.rows + 3))[0].row == 3
    assert len(frame(write_result(1, result))) < 80
