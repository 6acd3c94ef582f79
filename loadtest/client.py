"""A small HTTP/1.1 client for load: keep-alive connections, encoded requests in, statuses out.

It shares the machine with the server, so it does as little as it can: one write per request, no copy and no decoding of
an answer. When to send, and what a failure means, is left to the drivers.
"""

import asyncio
import http.client
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import httptools

from loadtest.token_stream import Tokens


def fetch(url: str) -> bytes | None:
    """The page at this address, outside a run; None if there is none. No proxy: `Client` knows of none either."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as answer:
            return bytes(answer.read())
    except (OSError, http.client.HTTPException):
        return None


class Answer(NamedTuple):
    """How a request ended. Status 0: no answer came, and `error` names why, as it does of a stream that broke."""

    status: int
    has_retry_after: bool = False
    error: str = ""
    tokens: Tokens | None = None  # of a stream

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300 and not self.error


Done = Callable[[Answer], None]


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time.

    Mutable: who waits for the answer, what of it has been read, and its own place among its client's connections.
    """

    def __init__(self, idle: "list[Connection]", alive: "set[Connection]") -> None:
        self._idle, self._alive = idle, alive
        self._done: Done | None = None
        self._has_retry_after = False
        self._is_complete = False
        self._is_kept = False
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)

    def send(self, request: bytes, done: Done) -> None:
        if self._transport is None:
            raise RuntimeError("a connection was used before it was made. This is a bug.")
        self._done, self._has_retry_after, self._is_complete = done, False, False
        self._transport.write(request)

    def is_usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def abort(self, reason: str) -> None:
        """Closes at once; a request under way ends with `reason`."""
        if self._transport is not None:
            self._transport.abort()
        self._end(Answer(0, error=reason))

    def _end(self, answer: Answer) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(answer)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._alive.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._alive.discard(self)
        if self in self._idle:
            self._idle.remove(self)
        self._end(Answer(0, error=type(exc).__name__ if exc else "ConnectionClosed"))

    def data_received(self, data: bytes) -> None:
        if self._done is None:
            return self.abort("UnexpectedData")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            return self.abort(type(error).__name__)
        if self._is_complete:
            self._finish()

    def _finish(self) -> None:
        answer = self._build_answer()
        if self._is_kept:
            self._idle.append(self)
        elif self._transport is not None:
            self._transport.close()
        # Last, because the callback may send the next request over this very connection.
        self._end(answer)

    def _build_answer(self) -> Answer:
        return Answer(self._parser.get_status_code(), self._has_retry_after)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self._has_retry_after = True

    def on_message_complete(self) -> None:
        self._is_complete = True
        # Only here: the parser forgets it once it is past the message.
        self._is_kept = self._parser.should_keep_alive()


class Client:
    """Sends requests to one server over as many connections as are needed at once.

    Mutable: the connections, idle and all, and those still being made. Belongs to one event loop.
    """

    def __init__(self, url: str, path: str = "/v1/embeddings", connection: type[Connection] = Connection) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url!r}: the load client speaks plain HTTP; give a URL such as http://127.0.0.1:8000")
        self._host, self._port = parts.hostname, parts.port or 80
        self._head = f"POST {parts.path.rstrip('/')}{path} HTTP/1.1\r\nHost: {parts.netloc}\r\n".encode()
        self._connection = connection
        self._idle: list[Connection] = []
        self._alive: set[Connection] = set()
        self._opening: set[asyncio.Task[Connection]] = set()

    def encode(self, body: bytes) -> bytes:
        """The whole request around a JSON body: done once, before the clock runs."""
        length = str(len(body)).encode()
        return self._head + b"Content-Type: application/json\r\nContent-Length: " + length + b"\r\n\r\n" + body

    def send(self, request: bytes, done: Done) -> None:
        """Sends at once, over an idle connection or a new one, and calls `done` exactly once.

        A request that fails ends in an `Answer` too. Nothing is sent twice: a retry would hide what the server did.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable():
                return connection.send(request, done)
        task = asyncio.get_running_loop().create_task(self._open())
        self._opening.add(task)
        task.add_done_callback(partial(self._opened, request, done))

    async def _open(self) -> Connection:
        loop = asyncio.get_running_loop()
        build = partial(self._connection, self._idle, self._alive)
        return (await loop.create_connection(build, self._host, self._port))[1]

    def _opened(self, request: bytes, done: Done, task: asyncio.Task[Connection]) -> None:
        self._opening.discard(task)
        if task.cancelled():
            return done(Answer(0, error="Aborted"))
        if error := task.exception():
            return done(Answer(0, error=type(error).__name__))
        if not task.result().is_usable():
            return done(Answer(0, error="ConnectionClosed"))
        task.result().send(request, done)

    async def abort(self, reason: str = "Aborted") -> None:
        """Closes every connection; when it returns, each request has had its answer."""
        for task in self._opening:
            task.cancel()
        for connection in list(self._alive):
            connection.abort(reason)
        # The loop delivers cancellations and lost connections in its next turns.
        while self._opening or self._alive:
            await asyncio.sleep(0)
