"""Clients that go away, dawdle or send bombs: the others notice nothing, and nothing of theirs stays behind."""

import asyncio
import gzip
from collections.abc import Awaitable, Callable

import pytest

from tests.chaos.exchange import write_request
from tests.chaos.ledger import Ledger
from tests.chaos.servers import ChaosServer

pytestmark = pytest.mark.chaos

NUM_CLIENTS = 16
Wire = tuple[asyncio.StreamReader, asyncio.StreamWriter]


EMBED = write_request("/v1/embeddings", {"input": [f"word{index}" for index in range(20)]})
GENERATE = write_request("/v1/completions", {"prompt": "word5", "max_tokens": 400, "stream": True})


async def connect_only(wire: Wire) -> None:
    await asyncio.sleep(0.05)


async def send_half(wire: Wire) -> None:
    wire[1].write(EMBED[:-40])
    await asyncio.sleep(0.05)


async def queue(wire: Wire) -> None:
    """Sixteen times 20 inputs take longer than this."""
    wire[1].write(EMBED)
    await asyncio.sleep(0.01)


async def read_some(wire: Wire) -> None:
    wire[1].write(GENERATE)
    assert b"200 OK" in await wire[0].readuntil(b"\r\n\r\n")
    await wire[0].readuntil(b"data: ")


@pytest.mark.parametrize("act", [connect_only, send_half, queue, read_some])
def test_clients_go_away(server: ChaosServer, act: Callable[[Wire], Awaitable[None]]) -> None:
    """Before a request, within one, in the queue, in the middle of a stream."""
    ledger = Ledger(server, f"disconnect: {act.__name__}", refusals=frozenset({429}))

    async def leave() -> None:
        wire = await asyncio.open_connection("127.0.0.1", server.port)
        await act(wire)
        wire[1].transport.abort()

    async def send() -> None:
        await asyncio.gather(ledger.embed_steadily(1.0, num_clients=4), *(leave() for _ in range(NUM_CLIENTS)))

    asyncio.run(send())
    ledger.close()


def test_slow_senders_and_slow_readers(server: ChaosServer) -> None:
    """A byte at a time, and streams that nobody reads."""
    ledger = Ledger(server, "slow senders and readers")

    async def dawdle() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for place in range(20):
            writer.write(EMBED[place : place + 1])
            await asyncio.sleep(0.1)
        writer.transport.abort()

    async def ignore() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(GENERATE)
        await asyncio.sleep(2)
        writer.transport.abort()

    async def send() -> None:
        slow = [each() for _ in range(NUM_CLIENTS) for each in (dawdle, ignore)]
        await asyncio.gather(ledger.embed_steadily(2.0), *slow)

    asyncio.run(send())
    ledger.close()


def test_gzip_bombs(server: ChaosServer) -> None:
    """100 MB in 100 KB: refused when the limit is reached."""
    ledger = Ledger(server, "gzip bombs")
    bomb = gzip.compress(b'{"input": "' + b" " * 100_000_000 + b'"}', 1)

    async def send() -> None:
        bombs = (
            ledger.expect(413, "body_too_large", "/v1/embeddings", bomb, "content-encoding: gzip") for _ in range(4)
        )
        await asyncio.gather(ledger.embed_steadily(1.0), *bombs)

    asyncio.run(send())
    ledger.close()
