"""How a broken answer reads: the ledger asks again for it, as clients do."""

import asyncio

import pytest

from tests.chaos.exchange import Answer, exchange, write_request
from tests.chaos.ledger import was_unheard


async def ask(reply: bytes) -> Answer:
    """A server that says `reply` and hangs up."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        return await exchange(port, write_request("/", {}))


def test_a_whole_answer() -> None:
    assert asyncio.run(ask(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")) == Answer(200, b"{}")


@pytest.mark.parametrize("body", [b"", b"{"])
def test_a_cut_body_is_no_answer(body: bytes) -> None:
    with pytest.raises(EOFError) as raised:
        asyncio.run(ask(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n" + body))
    assert not was_unheard(raised.value)


def test_no_head_is_unheard() -> None:
    with pytest.raises(EOFError) as raised:
        asyncio.run(ask(b""))
    assert was_unheard(raised.value)
