"""One HTTP exchange over a socket of its own: cheap enough for hundreds at once, and it sees how a connection ends."""

import asyncio
import json
import re
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


def parse_length(head: bytes) -> int | None:
    """None: a stream, whose end its last event tells."""
    found = re.search(rb"\r\ncontent-length: *(\d+)\r\n", head, re.IGNORECASE)
    return int(found[1]) if found else None


async def read_body(reader: asyncio.StreamReader, length: int) -> bytes:
    """A worker may be killed between the head and the body of an answer: that is no answer, and not an unheard one."""
    try:
        return await reader.readexactly(length)
    except (OSError, EOFError) as error:
        raise EOFError(f"the answer's body of {length} bytes was cut") from error


async def exchange(port: int, request: bytes) -> Answer:
    """Raises OSError, or EOFError where the connection ends without an answer or within one that told its length."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    try:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if (length := parse_length(head)) is not None:
            return Answer(int(head.split()[1]), await read_body(reader, length))
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
