"""Both ends of the process boundary, over a real Unix socket in one process."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from runtime.engine import EngineInfo
from server.engine import engine_server
from server.engine.engine_server import EngineServer
from server.errors import DeadlineExceeded, EngineFailure, EngineUnavailable, Unservable
from server.tasks.embed import EmbedParams
from server.wire import client as wire_client
from server.wire.client import SocketClient
from server.wire.job import EngineStatus, Job, Ragged, Result, TokenSequence
from server.wire.messages import Message
from server.wire.replica_set import ReplicaSet
from server.wire.result_stream import ResultStream
from tests.pure.fake_requests import OUTPUT, make_job, make_sequence
from tests.pure.gated_engine import PATIENCE_S, POISON, GatedEngine, expected_rows, make_loop, read_rows, until

pytestmark = pytest.mark.anyio

PARAMS = {"embed": EmbedParams}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class FakeLoop:
    """Stands for an EngineLoop. Jobs wait until they are cancelled, or fail at once with `error`. Mutable: all."""

    error: Exception | None = None
    jobs: list[Job] = field(default_factory=list)
    streams: list[ResultStream] = field(default_factory=list)
    cancelled: list[tuple[int, ...]] = field(default_factory=list)
    status: EngineStatus = field(
        default_factory=lambda: EngineStatus(
            True, "ready", 123.5, info=EngineInfo("null", "none", "", "cpu", 1, (OUTPUT,))
        )
    )

    def statuses(self) -> tuple[EngineStatus, ...]:
        return (self.status,)

    def submit(self, job: Job) -> ResultStream:
        self.jobs.append(job)
        if self.error is not None:
            raise self.error

        def cancel(rows: Sequence[int]) -> None:
            self.cancelled.append(tuple(rows))

        self.streams.append(ResultStream(cancel))
        return self.streams[-1]

    async def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine.sock"


@pytest.fixture
async def client(path: Path) -> AsyncIterator[SocketClient]:
    client = SocketClient(path)
    await client.start()
    yield client
    await client.close()


@pytest.fixture
async def fake(path: Path, client: SocketClient) -> AsyncIterator[FakeLoop]:
    """Behind a server, connected."""
    loop = FakeLoop()
    server = EngineServer(loop, path, PARAMS)
    await server.start()
    await until(lambda: client.status.is_ready)
    yield loop
    await server.close()


@pytest.fixture
async def engine(path: Path, client: SocketClient) -> AsyncIterator[GatedEngine]:
    """A real loop behind a server, connected."""
    engine = GatedEngine()
    loop = make_loop(engine)
    await loop.start()
    server = EngineServer(loop, path, PARAMS)
    await server.start()
    await until(lambda: client.status.is_ready)
    yield engine
    await server.close()
    await loop.close()


async def run(client: SocketClient, *sequences: TokenSequence, timeout_s: float = 1e6) -> list[list[float]]:
    return await read_rows(client.submit(make_job(list(sequences), timeout_s=timeout_s)))


async def test_answers_come_back_whole_and_in_order(client: SocketClient, engine: GatedEngine) -> None:
    sequences = [make_sequence(length, length * 7) for length in (30, 2, 90, 30, 1)]
    assert await run(client, *sequences) == expected_rows(sequences)
    assert (client.pending, client.pending_tokens) == ({}, 0)


async def test_jobs_under_way_together_keep_apart(client: SocketClient, engine: GatedEngine, path: Path) -> None:
    """Of two HTTP processes, whose job ids are the same."""
    other = SocketClient(path)
    await other.start()
    await until(lambda: other.status.is_ready)
    sequences = [make_sequence(1 + index % 9, index + 1) for index in range(40)]
    answers = await asyncio.gather(
        *(run((client, other)[index % 2], sequence) for index, sequence in enumerate(sequences))
    )
    assert [answer[0] for answer in answers] == expected_rows(sequences)
    await other.close()


async def test_failures_of_the_engine_arrive_as_what_they_are(client: SocketClient, engine: GatedEngine) -> None:
    with pytest.raises(EngineFailure, match=str(POISON)):
        await run(client, make_sequence(1, POISON))
    with pytest.raises(DeadlineExceeded):
        await run(client, make_sequence(1), timeout_s=-1.0)
    await run(client, make_sequence(1))


@pytest.mark.parametrize("kind", [EngineUnavailable, DeadlineExceeded, EngineFailure, Unservable])
async def test_every_kind_of_failure_travels(
    client: SocketClient, fake: FakeLoop, kind: Callable[[str], Exception]
) -> None:
    fake.error = kind("so it goes")
    with pytest.raises(kind, match="so it goes"):  # type: ignore[call-overload]
        await run(client, make_sequence(1))
    assert not client.pending
    assert client.pending_tokens == 0


async def test_bug_behind_the_socket_hangs_nobody(client: SocketClient, fake: FakeLoop) -> None:
    fake.error = KeyError("surprise")
    with pytest.raises(EngineFailure, match="surprise"):
        await run(client, make_sequence(1))


async def test_task_that_the_engine_does_not_know_hangs_nobody(client: SocketClient, fake: FakeLoop) -> None:
    with pytest.raises(EngineFailure, match="sing"):
        await read_rows(client.submit(Job("sing", make_job([make_sequence(1)]).inputs, 1.0)))


async def test_all_of_a_job_travels(client: SocketClient, fake: FakeLoop) -> None:
    types = np.array([0, 1, 1], np.int32)
    job = make_job([make_sequence(2), TokenSequence(np.arange(3, dtype=np.int32), types)], timeout_s=7.5, priority=-2)
    client.submit(job)
    await until(lambda: fake.jobs)
    (found,) = fake.jobs
    assert found.inputs["token_type_ids"].row(1).tolist() == [0, 1, 1]
    assert (found.task, found.timeout_s, found.params, found.priority) == ("embed", 7.5, EmbedParams(), -2)


async def test_status_travels(client: SocketClient, fake: FakeLoop) -> None:
    (status,) = client.statuses()
    assert (status.is_ready, status.reason, status.tokens_per_s) == (True, "ready", 123.5)
    assert status.info is not None
    assert status.info.outputs == (OUTPUT,)


async def test_cancel_travels(client: SocketClient, fake: FakeLoop) -> None:
    gone, other = client.submit(make_job([make_sequence(5)])), client.submit(make_job([make_sequence(3)]))
    await until(lambda: len(fake.jobs) == 2)
    assert client.pending_tokens == 8
    gone.cancel()
    await until(lambda: fake.cancelled)
    assert fake.cancelled == [()] and fake.streams[0].is_over and not fake.streams[1].is_over
    assert client.pending_tokens == 3
    assert not other.is_over


async def test_cancel_of_single_rows_travels_and_the_others_go_on(client: SocketClient, fake: FakeLoop) -> None:
    stream = client.submit(make_job([make_sequence(1)] * 4))
    await until(lambda: fake.jobs)
    stream.cancel([0, 2])
    await until(lambda: fake.cancelled)
    assert fake.cancelled == [(0, 2)] and not fake.streams[0].is_over
    rows = Ragged(np.ones((2, 4), np.float32))
    fake.streams[0].put(Result(np.array([1, 3], np.int32), {"embeddings": rows}, is_last=True))
    (result,) = [result async for result in stream]
    assert result.rows.tolist() == [1, 3]
    assert not client.pending


async def test_http_process_that_ends_takes_its_jobs_along(client: SocketClient, fake: FakeLoop) -> None:
    task = asyncio.create_task(run(client, make_sequence(5)))
    await until(lambda: fake.jobs)
    await client.close()
    await until(lambda: fake.cancelled)
    with pytest.raises(EngineUnavailable):
        await task


async def test_engine_that_ends_fails_who_waits_at_once_and_is_found_again(client: SocketClient, path: Path) -> None:
    server = EngineServer(FakeLoop(), path, PARAMS)
    await server.start()
    await until(lambda: client.status.is_ready)
    tasks = [asyncio.create_task(run(client, make_sequence(5))) for _ in range(3)]
    await until(lambda: len(client.pending) == 3)
    await server.close()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE_S)
    assert all(isinstance(result, EngineUnavailable) for result in results), results
    assert not client.status.is_ready
    with pytest.raises(EngineUnavailable, match="being started again"):
        await run(client, make_sequence(5))

    engine = GatedEngine()
    loop = make_loop(engine)
    await loop.start()
    again = EngineServer(loop, path, PARAMS)
    await again.start()
    await until(lambda: client.status.is_ready)
    assert await run(client, make_sequence(5)) == expected_rows([make_sequence(5)])
    await again.close()
    await loop.close()


async def test_engine_that_is_not_there_yet_is_said_to_be_starting(client: SocketClient) -> None:
    with pytest.raises(EngineUnavailable, match="starting"):
        client.submit(make_job([make_sequence(5)]))


async def test_loss_of_readiness_is_reported(
    client: SocketClient, fake: FakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_server, "STATUS_PERIOD_S", 0.001)
    fake.status = EngineStatus(False, "it stopped computing")
    await until(lambda: not client.status.is_ready)
    assert client.status.reason == "it stopped computing"


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines speak every 20 ms, and hang after 200 ms of silence."""
    monkeypatch.setattr(wire_client, "WATCH_PERIOD_S", 0.01)
    monkeypatch.setattr(wire_client, "SILENT_S", 0.2)
    monkeypatch.setattr(engine_server, "STATUS_PERIOD_S", 0.02)


async def test_engine_that_falls_silent_fails_who_waits(
    path: Path, short_patience: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is stopped, or its loop stuck: the connection stands, and nothing comes."""
    server = EngineServer(FakeLoop(), path, PARAMS)
    await server.start()
    client = SocketClient(path)
    await client.start()
    await until(lambda: client.status.is_ready)
    task = asyncio.create_task(run(client, make_sequence(5)))
    await asyncio.sleep(0.5)
    assert not task.done(), "One that speaks may take its time."
    monkeypatch.setattr(engine_server, "STATUS_PERIOD_S", 1000.0)
    with pytest.raises(EngineUnavailable, match=r"has said nothing for \d\.\d s"):
        await task
    await client.close()
    await server.close()


async def test_process_that_stood_still_itself_blames_no_engine(path: Path, short_patience: None) -> None:
    server = EngineServer(FakeLoop(), path, PARAMS)
    await server.start()
    client = SocketClient(path)
    await client.start()
    await until(lambda: client.status.is_ready)
    task = asyncio.create_task(run(client, make_sequence(5)))
    await until(lambda: client.pending)
    for _ in range(3):
        time.sleep(0.5)  # the event loop stands still
        await asyncio.sleep(0.05)
    assert (client.num_connections, client.status.is_ready, task.done()) == (1, True, False)
    task.cancel()
    await client.close()
    await server.close()


async def test_sibling_computes_what_a_silent_engine_was_asked(
    tmp_path: Path, short_patience: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, silent = GatedEngine(), FakeLoop()
    loop = make_loop(engine)
    await loop.start()
    servers = [EngineServer(each, tmp_path / str(place), PARAMS) for place, each in enumerate((silent, loop))]
    clients = [SocketClient(server.path) for server in servers]
    for server, client in zip(servers, clients, strict=True):
        await server.start()
        await client.start()
    await until(lambda: all(client.status.is_ready for client in clients))
    replicas = ReplicaSet(clients)
    task = asyncio.create_task(read_rows(replicas.submit(make_job([make_sequence(5)]))))
    await until(lambda: silent.jobs)

    send = engine_server.Connection.send

    def send_unless_silent(connection: engine_server.Connection, message: Message) -> None:
        """One says nothing more, as a process that is stopped."""
        if connection.engine is not silent:
            send(connection, message)

    monkeypatch.setattr(engine_server.Connection, "send", send_unless_silent)
    assert await task == expected_rows([make_sequence(5)])
    assert "has said nothing" in clients[0].status.reason
    await replicas.close()
    for server in servers:
        await server.close()
    await loop.close()


async def test_what_cannot_be_understood_ends_the_connection_and_not_the_client(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    num_closed: list[int] = []

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x03\x00\x00\x00abc")
        writer.close()
        num_closed.append(1)

    server = await asyncio.start_unix_server(babble, path)
    client = SocketClient(path)
    await client.start()
    await until(lambda: "broke" in client.status.reason)
    await until(lambda: client.num_connections > 1)
    await client.close()
    server.close()
    await until(lambda: len(num_closed) >= client.num_connections)
    assert "cannot be understood" in caplog.text
