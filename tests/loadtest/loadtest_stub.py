"""A server of made-up embeddings on loopback: answers after a sleep, and stalls, refuses or resets on demand.

The tests run it in their own event loop; `python loadtest_stub.py PORT` runs it alone, until SIGTERM.
"""

import asyncio
import base64
import contextlib
import json
import signal
import struct
import sys
from collections.abc import AsyncIterator, Callable

RESET = 0
REASONS = {200: "OK", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}


def embed(text: str) -> str:
    return base64.b64encode(struct.pack("<4f", *[len(text) / 1000] * 4)).decode()


class StubServer:
    """Mutable: the requests it was sent, and the gate that holds all answers back while it is closed."""

    def __init__(
        self, delay_s: float = 0.001, concurrency: int = 1000, status_of: Callable[[int], int] = lambda _: 200
    ) -> None:
        self.delay_s, self.status_of = delay_s, status_of
        self.gate = asyncio.Event()
        self.gate.set()
        self.bodies: list[dict[str, object]] = []
        self.num_connections = 0
        self._handlers: set[asyncio.Task[object]] = set()
        self._slots = asyncio.Semaphore(concurrency)

    @contextlib.asynccontextmanager
    async def listen(self, port: int = 0) -> AsyncIterator[str]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", port, limit=2**20, backlog=512)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            while self._handlers:
                for handler in self._handlers:
                    handler.cancel()
                await asyncio.sleep(0.001)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it."""
        self.num_connections += 1
        handler = asyncio.current_task()
        assert handler
        self._handlers.add(handler)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while await self.answer(reader, writer):
                pass
        writer.transport.abort()
        self._handlers.discard(handler)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        body = await reader.readexactly(int(fields.get("content-length", 0)))
        status, content = await (self.embeddings(body) if method == "POST" else self.page(path))
        if status == RESET:
            return False
        extra = "Retry-After: 1\r\n" if status == 429 else ""
        data = json.dumps(content).encode()
        lines = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Length: {len(data)}\r\n{extra}\r\n"
        writer.write(lines.encode() + data)
        await writer.drain()
        return True

    async def page(self, path: str) -> tuple[int, object]:
        pages: dict[str, object] = {
            "/ready": {"ready": True},
            "/info": {"version": "stub"},
            "/v1/models": {"data": [{"id": "stub-model"}]},
        }
        return (200, pages[path]) if path in pages else (404, {"error": "not found"})

    async def embeddings(self, body: bytes) -> tuple[int, object]:
        request = json.loads(body)
        self.bodies.append(request)
        status = self.status_of(len(self.bodies) - 1)
        if status != 200:
            return status, {"error": {"message": "as asked"}}
        async with self._slots:
            await asyncio.sleep(self.delay_s)
        await self.gate.wait()
        texts = [request["input"]] if isinstance(request["input"], str) else request["input"]
        data = [{"index": index, "embedding": embed(text)} for index, text in enumerate(texts)]
        return 200, {"object": "list", "data": data, "model": request["model"]}


@contextlib.asynccontextmanager
async def listen_raw(answer: bytes) -> AsyncIterator[str]:
    """A server that answers whatever it is sent with these bytes and hangs up."""
    transports: list[asyncio.Transport] = []

    class Talk(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transports.append(transport)

        def data_received(self, data: bytes) -> None:
            transports[-1].write(answer)
            transports[-1].close()

        def connection_lost(self, exc: Exception | None) -> None:
            transports.pop()

    server = await asyncio.get_running_loop().create_server(Talk, "127.0.0.1")
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        while transports:
            await asyncio.sleep(0.001)


async def main(port: int, delay_s: float, concurrency: int) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with StubServer(delay_s, concurrency).listen(port):
        await stopped.wait()
    print("stopped by SIGTERM", flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), delay_s=0.02, concurrency=4))
