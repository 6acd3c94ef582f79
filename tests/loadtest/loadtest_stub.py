"""A server of made-up embeddings and texts on loopback: answers after a sleep, and stalls, refuses or resets on demand.

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
from dataclasses import dataclass

RESET = 0
REASONS = {200: "OK", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}


def embed(text: str) -> str:
    return base64.b64encode(struct.pack("<4f", *[len(text) / 1000] * 4)).decode()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One stream: a wait, then pieces of so many tokens each with a wait between them, and how it ends."""

    ttft_s: float = 0.0
    gap_s: float = 0.0
    pieces: tuple[int, ...] = (1, 1, 1)
    ending: str = "done"  # or "error": an event with an error; "reset": the connection is closed

    @property
    def num_tokens(self) -> int:
        return sum(self.pieces)


class StubServer:
    """Mutable: the requests it was sent, when it wrote which stream's tokens, and the gate that holds all answers back
    while it is closed."""

    def __init__(
        self,
        delay_s: float = 0.001,
        concurrency: int = 1000,
        status_of: Callable[[int], int] = lambda _: 200,
        plan_of: Callable[[int], Plan] = lambda _: Plan(),
    ) -> None:
        self.delay_s, self.status_of, self.plan_of = delay_s, status_of, plan_of
        self.written_s: list[list[float]] = []
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
        if path.endswith("/completions") and self.status_of(len(self.bodies)) == 200:
            return await self.stream(json.loads(body), writer, is_chat="chat" in path)
        status, content = await (self.embeddings(body) if method == "POST" else self.page(path))
        if status == RESET:
            return False
        extra = "Retry-After: 1\r\n" if status == 429 else ""
        data = json.dumps(content).encode()
        lines = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Length: {len(data)}\r\n{extra}\r\n"
        writer.write(lines.encode() + data)
        await writer.drain()
        return True

    async def stream(self, request: dict[str, object], writer: asyncio.StreamWriter, *, is_chat: bool) -> bool:
        """Events as Padless writes them; false if the connection is to be closed."""
        plan, clock = self.plan_of(len(self.bodies)), asyncio.get_running_loop().time
        self.bodies.append(request)
        times: list[float] = []
        self.written_s.append(times)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number, num_tokens in enumerate(plan.pieces):
            await asyncio.sleep(plan.gap_s if number else plan.ttft_s)
            first = [{"delta": {"role": "assistant", "content": ""}}] if is_chat and not number else []
            text: dict[str, object] = {"delta": {"content": "word "}} if is_chat else {"text": "word "}
            write_events(
                writer, *({"choices": [choice]} for choice in [*first, text | {"token_ids": [7] * num_tokens}])
            )
            times.append(clock())
            await writer.drain()
        if plan.ending == "reset":
            return False
        if plan.ending == "error":
            write_events(writer, {"error": {"message": "as asked", "type": "server_error"}})
        else:
            usage = {"prompt_tokens": 3, "completion_tokens": plan.num_tokens}
            write_events(writer, {"choices": [], "usage": usage}, "[DONE]")
        writer.write(b"0\r\n\r\n")
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


def write_events(writer: asyncio.StreamWriter, *events: object) -> None:
    """Events in one piece, as one chunk of HTTP."""
    data = b"".join(
        b"data: " + (b"[DONE]" if event == "[DONE]" else json.dumps(event).encode()) + b"\n\n" for event in events
    )
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


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
