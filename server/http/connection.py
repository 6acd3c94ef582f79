"""What a connection may cost: how many there are, how long a request may take to arrive, and an answer to be read.

uvicorn itself waits for ever for the second half of a request, and for a reader who does not read. And where a request
asks for another protocol, as those of Java's client do, it takes the body for the next request.
"""

import asyncio
import sys
from enum import Enum
from http import HTTPStatus
from typing import ClassVar, cast

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.config import HttpConfig

MAX_OVERHEAD_BYTES = 65_536
"""Of a request's line and headers, or between two parts of its body; as they arrive in pieces, up to one more."""
PROGRESS_S, PROGRESS_BYTES = 5.0, 1024
"""In each such period so much of a body must come, or its end."""
FRAMING = (b"content-length", b"transfer-encoding")
MAX_PIPELINED = 16
"""Requests sent ahead on one connection. Hardly any client sends one."""


class Phase(Enum):
    """What a connection waits for."""

    FIRST_BYTE = "the first byte"
    HEADERS = "the request's headers"
    BODY = "the request's body"
    ANSWER = "its answer, or the next request: uvicorn closes idle connections"


class Connection(HttpToolsProtocol):
    """Mutable: what it waits for, since when, and what has come meanwhile. Subclasses carry the limits."""

    limits: ClassVar[HttpConfig]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._overhead_bytes = self._progress_bytes = 0
        self._data, self._framing, self._is_resuming = b"", b"", False
        self._enter(Phase.FIRST_BYTE)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(
                HTTPStatus.SERVICE_UNAVAILABLE, "too_many_connections", "the server has too many connections; try later"
            )
            return
        self._watch_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._read_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._has_moved = False
        self._overhead_bytes += len(data)
        self._data = data
        super().data_received(data)
        self._data = b""
        if self.transport.is_closing():
            return
        if self._overhead_bytes > MAX_OVERHEAD_BYTES and self._phase is not Phase.ANSWER:
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                "headers_too_large",
                f"the request's headers are over the limit of {MAX_OVERHEAD_BYTES} bytes",
            )
            return
        if self._phase is Phase.ANSWER and not self._has_moved and not self._is_answering():
            # Blank lines: they have stopped uvicorn's clock of idle connections, and begin no request.
            self._enter(Phase.FIRST_BYTE)
        if self._has_moved:
            self._watch_reading()

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, "invalid_request", msg)

    def _enter(self, phase: Phase) -> None:
        self._phase, self._has_moved, self._overhead_bytes = phase, True, 0

    def _unsupported_upgrade_warning(self) -> None:
        """The request is read on as if it had not asked for another protocol (RFC 9110, 7.8); httptools has ended it at
        its headers, and this parser begins anew with those that say where the body ends."""
        if self._framing:
            (num_read,) = cast(httptools.HttpParserUpgrade, sys.exception()).args
            self._data = b"POST / HTTP/1.1\r\n" + self._framing + b"\r\n\r\n" + self._data[num_read:]
            self._is_resuming = True
            super().data_received(self._data)

    def on_message_begin(self) -> None:
        if self._is_resuming:
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests sent ahead")  # to the parser, which then gives up
        super().on_message_begin()
        self._enter(Phase.HEADERS)

    def on_url(self, url: bytes) -> None:
        if not self._is_resuming:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Those behind a body, its trailers, are nobody's business here.
        if self._phase is Phase.HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_resuming:
            self._is_resuming, self._framing = False, b""
            return
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self._framing = b"\r\n".join(name + b":" + value for name, value in self.headers if name in FRAMING)
        self._enter(Phase.BODY)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._overhead_bytes = 0
        self._progress_bytes += len(body)

    def on_message_complete(self) -> None:
        if self._framing:
            return
        super().on_message_complete()
        self._enter(Phase.ANSWER)

    def _watch_reading(self) -> None:
        """Set the clock for what it waits for now."""
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        if self._phase in (Phase.FIRST_BYTE, Phase.HEADERS):
            self._read_timer = self.loop.call_later(self.limits.header_timeout_s, self._end_reading)
        elif self._phase is Phase.BODY:
            self._body_due_s = self.loop.time() + self.limits.body_timeout_s
            self._watch_body()

    def _watch_body(self) -> None:
        self._progress_bytes = 0
        wait_s = min(PROGRESS_S, self._body_due_s - self.loop.time())
        self._read_timer = self.loop.call_later(max(wait_s, 0.0), self._check_body)

    def _check_body(self) -> None:
        if self.flow.read_paused:  # it is us who do not read: an earlier request has yet to be answered
            self._body_due_s += PROGRESS_S
        elif self._progress_bytes < PROGRESS_BYTES or self.loop.time() >= self._body_due_s:
            self._end_reading()
            return
        self._watch_body()

    def _end_reading(self) -> None:
        """What was waited for has not come. Whoever has begun a request is told."""
        if self._phase is Phase.FIRST_BYTE:
            self.transport.close()
            return
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", f"{self._phase.value} did not arrive in time")

    def _refuse(self, status: HTTPStatus, code: str, message: str) -> None:
        """Close, with an answer in OpenAI's shape where that does not fall into another one."""
        if not self._is_answering():
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
            body = orjson.dumps({"error": error})
            head = (
                f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nretry-after: 1\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
        self._watch_closing()

    def _is_answering(self) -> bool:
        """Whether an answer has begun that has not ended, or is yet to begin before the present request's."""
        if self.cycle is None:
            return False
        if self._phase is Phase.BODY:
            return bool(self.pipeline) or self.cycle.response_started
        return not self.cycle.response_complete

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        self._watch_closing()

    def _watch_writing(self) -> None:
        """The request that is being answered sees its client go, and is cancelled."""
        self._write_timer = self.loop.call_later(self.limits.write_timeout_s, self.transport.abort)

    def _watch_closing(self) -> None:
        """What waits to be sent would keep a closing connection for ever."""
        if self.transport.is_closing() and self._write_timer is None and self.transport.get_write_buffer_size():
            self._watch_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_closing()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()


def bound_connections(limits: HttpConfig) -> type[Connection]:
    """A class for `uvicorn.Config(http=...)`, which makes the objects itself."""

    class BoundConnection(Connection):
        pass

    BoundConnection.limits = limits
    return BoundConnection
