"""A sibling takes over from an engine: what was not told begins anew, and nothing of the first is left."""

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from conftest import Server, compute_row
from fake_generator import EOS, GenerationServer, read_events

from server.wire.generation import AnswerNews, write_news
from server.wire.job import EngineStatus, Job, Ragged, Result
from server.wire.result_stream import ResultStream

pytestmark = pytest.mark.anyio


class Scripted:
    """An EngineClient that says what `write` puts into the stream of each job."""

    def __init__(self, write: Callable[[Job, ResultStream], None]) -> None:
        self.write = write

    def statuses(self) -> tuple[EngineStatus, ...]:
        return (EngineStatus(is_ready=True, reason="ready"),)

    def submit(self, job: Job) -> ResultStream:
        stream = ResultStream(lambda rows: None)
        self.write(job, stream)
        return stream

    async def close(self) -> None:
        return None


def tell(stream: ResultStream, row: int, ids: Sequence[int], *, is_last: bool = False, cached: int = 0) -> None:
    reason = "stop" if is_last else ""
    stream.put(write_news([AnswerNews(row, tuple(ids), (), reason, cached)], is_last=is_last))


def begin_anew(stream: ResultStream, *rows: int) -> None:
    """After what was said before has been read: `restart` takes back only the rest."""
    stream.put(Result(np.array(rows, np.int32), {}, is_last=False, is_restart=True))


async def test_vectors_of_the_first_engine_are_left_out(server: Server) -> None:
    def write(job: Job, stream: ResultStream) -> None:
        rows = [compute_row(job.input_ids.row(index), server.embed.info.output_dim) for index in range(job.num_inputs)]
        stream.put(Result(np.array([2], np.int32), {"embeddings": Ragged(np.full((1, 8), 7.0, np.float32))}, False))
        begin_anew(stream, 0, 1, 2)
        stream.put(Result(np.array([1, 0], np.int32), {"embeddings": Ragged(np.stack([rows[1], rows[0]]))}, False))
        stream.put(Result(np.array([2], np.int32), {"embeddings": Ragged(rows[2][None])}, True))

    expected = (await server.embed_text(["word1", "word2", "word3"])).json()["data"]
    server.embed.submit = Scripted(write).submit  # type: ignore[method-assign]
    assert (await server.embed_text(["word1", "word2", "word3"])).json()["data"] == expected


@pytest.mark.parametrize("is_stream", [False, True])
async def test_answer_begins_anew(generator: GenerationServer, is_stream: bool) -> None:
    """As a stream only while its text is held back: here it may become a stop string."""
    lost, said = generator.encode("ST"), [*generator.encode("hello"), EOS]

    def write(job: Job, stream: ResultStream) -> None:
        tell(stream, 0, lost, cached=3)
        begin_anew(stream, 0)
        tell(stream, 0, said[:-1], cached=1)
        tell(stream, 0, said[-1:], is_last=True)

    generator.engine.submit = Scripted(write).submit  # type: ignore[method-assign]
    options = {"stream": True, "stream_options": {"include_usage": True}} if is_stream else {}
    response = await generator.complete(stop="STOP", **options)
    assert response.status_code == 200
    if is_stream:
        *chunks, last = read_events(response)
        text, usage = "".join(chunk["choices"][0]["text"] for chunk in chunks), last["usage"]
    else:
        text, usage = response.json()["choices"][0]["text"], response.json()["usage"]
    assert text == "hello"
    assert usage["completion_tokens"] == len(said)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 1


async def test_rows_that_the_client_has_heard_of_are_told(generator: GenerationServer) -> None:
    """By that the replicas know what they may not begin anew: not what is held back, nor what is not streamed."""
    streams: list[ResultStream] = []
    told: list[set[int]] = []

    def write(job: Job, stream: ResultStream) -> None:
        streams.append(stream)

    generator.engine.submit = Scripted(write).submit  # type: ignore[method-assign]
    for is_stream, words in ((True, "hello"), (True, "ST"), (False, "hello")):
        task = asyncio.create_task(generator.complete(stop="STOP", stream=is_stream))
        async with asyncio.timeout(10):
            while len(streams) <= len(told):
                await asyncio.sleep(0.001)
            tell(streams[-1], 0, generator.encode(words))
            for _ in range(20):
                await asyncio.sleep(0.001)
        told.append(set(streams[-1].told))
        tell(streams[-1], 0, [EOS], is_last=True)
        assert (await task).status_code == 200
    assert told == [{0}, set(), set()]
