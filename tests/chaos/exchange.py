"""One HTTP exchange over a socket of its own: cheap enough for hundreds at once, and it sees how a connection ends."""

import asyncio
import json
from typing import NamedTuple


class Answer(NamedTuple):
    status: int
    body: bytes

    @property
    def events(self) -> list[str]:
        """Of a stream: the server writes each in one piece, so chunks do not cut them."""
        lines = self.body.decode().splitlines()
        return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


def write_request(path: str, body: object, *headers: str) -> bytes:
    """`body` is JSON, or bytes as they are."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "host: padless", "content-type: application/json", "connection: close", *headers]
    return "\r\n".join([*lines, f"content-length: {len(raw)}", "", ""]).encode() + raw


async def exchange(port: int, request: bytes) -> Answer:
    """Raises OSError, or EOFError where the connection ends without an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    try:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        received = bytearray()
        try:
            while chunk := await reader.read(1 << 16):
                received += chunk
        except OSError:
            if not received:
                raise
        return Answer(int(head.split()[1]), bytes(received))
    finally:
        writer.transport.abort()
