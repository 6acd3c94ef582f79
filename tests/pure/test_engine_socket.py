"""Both ends of the process boundary, over a real Unix socket in one process."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import numpy as np
import pytest

from runtime.engine import EngineInfo
from server.engine import engine_server
from server.engine.engine_server import EngineServer
from server.wire.client import SocketEngine
from server.wire.job import (
    Answer,
    DeadlineExceeded,
    EngineFailure,
    EngineStatus,
    EngineUnavailable,
    TokenSequence,
)
from tests.pure.fake_requests import make_sequence
from tests.pure.gated_engine import OUTPUT, PATIENCE_S, POISON, GatedEngine, expected_rows, make_loop, until

pytestmark = pytest.mark.anyio

LATER_S = monotonic() + 1e6  # set at import, long before the last test runs


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class FakeLoop:
    """Stands for an EngineLoop. Calls wait until they are cancelled, or raise `error`."""

    error: Exception | None = None
    calls: list[list[TokenSequence]] = field(default_factory=list)
    num_cancelled: int = 0

    def status(self) -> tuple[EngineStatus, ...]:
        return (EngineStatus(True, "ready", 7, 123.5, info=EngineInfo("null", "none", "", "cpu", 1, (OUTPUT,))),)

    async def run(self, sequences: list[TokenSequence], deadline_s: float) -> Answer:
        self.calls.append(sequences)
        if self.error is not None:
            raise self.error
        try:
            await asyncio.sleep(10 * PATIENCE_S)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        raise AssertionError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine.sock"


@pytest.fixture
async def client(path: Path) -> AsyncIterator[SocketEngine]:
    client = SocketEngine(path)
    await client.start()
    yield client
    await client.close()


@pytest.fixture
async def fake(path: Path, client: SocketEngine) -> AsyncIterator[FakeLoop]:
    """Behind a server, connected."""
    loop = FakeLoop()
    server = EngineServer(loop, path)  # type: ignore[arg-type]
    await server.start()
    await until(lambda: client.last.is_ready)
    yield loop
    await server.close()


@pytest.fixture
async def engine(path: Path, client: SocketEngine) -> AsyncIterator[GatedEngine]:
    """A real loop behind a server, connected."""
    engine = GatedEngine()
    loop = make_loop(engine)
    await loop.start()
    server = EngineServer(loop, path)
    await server.start()
    await until(lambda: client.last.is_ready)
    yield engine
    await server.close()
    await loop.close()


async def test_answers_come_back_whole_and_in_order(client: SocketEngine, engine: GatedEngine) -> None:
    sequences = [make_sequence(length, length * 7) for length in (30, 2, 90, 30, 1)]
    answer = await client.run(sequences, LATER_S)
    assert answer.values.tolist() == expected_rows(sequences)
    assert answer.values.dtype == np.float32


async def test_calls_under_way_together_keep_apart(client: SocketEngine, engine: GatedEngine, path: Path) -> None:
    """Of two HTTP processes, whose call ids are the same."""
    other = SocketEngine(path)
    await other.start()
    await until(lambda: other.last.is_ready)
    sequences = [make_sequence(1 + index % 9, index + 1) for index in range(40)]
    answers = await asyncio.gather(
        *((client, other)[index % 2].run([sequence], LATER_S) for index, sequence in enumerate(sequences))
    )
    assert [answer.values[0].tolist() for answer in answers] == expected_rows(sequences)
    await other.close()


async def test_failures_of_the_engine_arrive_as_what_they_are(client: SocketEngine, engine: GatedEngine) -> None:
    with pytest.raises(EngineFailure, match=str(POISON)):
        await client.run([make_sequence(1, POISON)], LATER_S)
    with pytest.raises(DeadlineExceeded):
        await client.run([make_sequence(1)], monotonic() - 1.0)
    await client.run([make_sequence(1)], LATER_S)


@pytest.mark.parametrize("kind", [EngineUnavailable, DeadlineExceeded, EngineFailure])
async def test_every_kind_of_failure_travels(
    client: SocketEngine, fake: FakeLoop, kind: Callable[[str], Exception]
) -> None:
    fake.error = kind("so it goes")
    with pytest.raises(kind, match="so it goes"):  # type: ignore[call-overload]
        await client.run([make_sequence(1)], LATER_S)
    assert not client.pending
    assert client.pending_tokens == 0


async def test_bug_behind_the_socket_hangs_nobody(client: SocketEngine, fake: FakeLoop) -> None:
    fake.error = KeyError("surprise")
    with pytest.raises(EngineFailure, match="surprise"):
        await asyncio.wait_for(client.run([make_sequence(1)], LATER_S), PATIENCE_S)


async def test_token_types_travel(client: SocketEngine, fake: FakeLoop) -> None:
    types = np.array([0, 1, 1], np.int32)
    task = asyncio.create_task(
        client.run([make_sequence(2), TokenSequence(np.arange(3, dtype=np.int32), types)], LATER_S)
    )
    await until(lambda: fake.calls)
    assert fake.calls[0][1].token_type_ids is not None
    assert fake.calls[0][1].token_type_ids.tolist() == [0, 1, 1]
    task.cancel()


async def test_status_travels(client: SocketEngine, fake: FakeLoop) -> None:
    (status,) = client.status()
    assert (status.is_ready, status.queued_tokens, status.tokens_per_s, status.num_restarts) == (True, 7, 123.5, 0)
    assert status.info is not None
    assert status.info.outputs == (OUTPUT,)


async def test_cancel_travels(client: SocketEngine, fake: FakeLoop) -> None:
    task = asyncio.create_task(client.run([make_sequence(5)], LATER_S))
    other = asyncio.create_task(client.run([make_sequence(3)], LATER_S))
    await until(lambda: len(fake.calls) == 2)
    assert client.pending_tokens == 8
    task.cancel()
    await until(lambda: fake.num_cancelled == 1)
    assert client.pending_tokens == 3
    assert not other.done()
    other.cancel()


async def test_http_process_that_ends_takes_its_calls_along(client: SocketEngine, fake: FakeLoop) -> None:
    task = asyncio.create_task(client.run([make_sequence(5)], LATER_S))
    await until(lambda: fake.calls)
    await client.close()
    await until(lambda: fake.num_cancelled == 1)
    with pytest.raises(EngineUnavailable):
        await asyncio.wait_for(task, PATIENCE_S)


async def test_engine_that_ends_fails_who_waits_at_once_and_is_found_again(client: SocketEngine, path: Path) -> None:
    server = EngineServer(FakeLoop(), path)  # type: ignore[arg-type]
    await server.start()
    await until(lambda: client.last.is_ready)
    tasks = [asyncio.create_task(client.run([make_sequence(5)], LATER_S)) for _ in range(3)]
    await until(lambda: len(client.pending) == 3)
    await server.close()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE_S)
    assert all(isinstance(result, EngineUnavailable) for result in results), results
    assert not client.last.is_ready
    with pytest.raises(EngineUnavailable, match="being started again"):
        await client.run([make_sequence(5)], LATER_S)

    engine = GatedEngine()
    loop = make_loop(engine)
    await loop.start()
    again = EngineServer(loop, path)
    await again.start()
    await until(lambda: client.last.is_ready)
    assert client.last.num_restarts == 1
    assert (await client.run([make_sequence(5)], LATER_S)).values.tolist() == expected_rows([make_sequence(5)])
    await again.close()
    await loop.close()


async def test_engine_that_is_not_there_yet_is_said_to_be_starting(client: SocketEngine) -> None:
    with pytest.raises(EngineUnavailable, match="starting"):
        await client.run([make_sequence(5)], LATER_S)


async def test_loss_of_readiness_is_reported(
    client: SocketEngine, fake: FakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_server, "STATUS_PERIOD_S", 0.001)
    monkeypatch.setattr(fake, "status", lambda: (EngineStatus(False, "it stopped computing"),))
    await until(lambda: not client.last.is_ready)
    assert client.last.reason == "it stopped computing"
