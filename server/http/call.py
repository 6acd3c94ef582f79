"""One HTTP exchange on its way: what the client sent, what is learned of it, and the answer's way out."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NamedTuple

import orjson
from starlette.types import Message, Receive, Scope, Send

from server.http.body_limits import HeldBody
from server.http.keys import Key
from server.metrics import UNKNOWN_MODEL, CallTimes

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"
SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
"""Cannot break a log line or a header."""
EVENT_HEADERS = [
    (b"content-type", EVENT_STREAM.encode()),
    (b"cache-control", b"no-cache"),
    # nginx would otherwise collect the events.
    (b"x-accel-buffering", b"no"),
]
Headers = Sequence[tuple[bytes, bytes]]


class Reply(NamedTuple):
    """A whole answer."""

    body: bytes
    status: int = 200
    content_type: str = JSON
    headers: Mapping[str, str] = {}


def reply_json(content: Any, status: int = 200) -> Reply:
    return Reply(orjson.dumps(content), status)


class ClientGone(Exception):
    """The client closed the connection: there is nobody to answer."""


@dataclass(slots=True)
class Call:
    """Mutable: `body` from when it is read until it is parsed, `deadline_s` and `key` once they are known, what metrics
    and the access log want to know, and whether the answer has begun and ended. Times are `time.monotonic()` seconds.
    `model` is a configured name or UNKNOWN_MODEL.
    """

    scope: Scope
    receive: Receive
    send: Send
    key: Key
    """Who asks; the one of nobody until that is known."""
    request_id: bytes = b""
    start_s: float = field(default_factory=monotonic)
    deadline_s: float = float("inf")
    on_deadline: Callable[[], None] | None = None
    """Who waits for it, and is told when it changes."""
    held: HeldBody | None = None
    """Once there is a body to be read."""
    body: bytes = b""
    rest: str = ""
    """What the `{name}` in the route's path stands for."""
    model: str = UNKNOWN_MODEL
    times: CallTimes = field(default_factory=CallTimes)
    status: int = 0
    has_ended: bool = False
    """A stream: all of it has been sent."""
    extra_headers: Headers = ()
    """Of every answer, whatever it is."""
    is_charged: bool = False
    """A job of it has been charged to the key; those after it are part of the same question."""
    path: str = field(init=False)
    request_headers: Mapping[bytes, bytes] = field(init=False)
    """The first one of each name; names are in lower case."""

    def __post_init__(self) -> None:
        self.path = self.scope["path"]
        self.request_headers = dict(reversed(self.scope["headers"]))

    @property
    def has_started(self) -> bool:
        return self.status != 0

    def header(self, name: bytes) -> str | None:
        """The first one of this name, in lower case."""
        value = self.request_headers.get(name)
        return None if value is None else value.decode("latin-1")

    def adopt_request_id(self, given: str | None) -> None:
        """One that came in the body; a header's goes before, and what is not sane is left."""
        name = (given or "").encode(errors="replace")
        if b"x-request-id" not in self.request_headers and SANE_REQUEST_ID.fullmatch(name):
            self.request_id = name

    def shorten_deadline(self, timeout_s: float) -> None:
        """To so long after the call's start, where that is earlier: a time that came in the body."""
        self.set_deadline(min(self.deadline_s - self.start_s, timeout_s))

    def set_deadline(self, timeout_s: float) -> None:
        """So long after the call's start."""
        self.deadline_s = self.start_s + timeout_s
        if self.on_deadline is not None:
            self.on_deadline()

    def take_body(self) -> bytes:
        """To be parsed, once: what it says is held then, and it need not be held as well until the answer's end."""
        body, self.body = self.body, b""
        return body

    async def start(self, status: int, headers: Headers) -> None:
        await self.forward({"type": "http.response.start", "status": status, "headers": headers})

    async def forward(self, message: Message) -> None:
        """A message of ASGI, with what every answer of ours has."""
        if message["type"] != "http.response.start":
            await self.send(message)
            return
        own = ((b"x-request-id", self.request_id), *self.extra_headers)
        await self.send({**message, "headers": [*message["headers"], *own]})
        # Not before: cancelled while it waits for the client to read, nothing has been sent.
        self.status = message["status"]

    async def answer(self, reply: Reply) -> None:
        headers = [(b"content-type", reply.content_type.encode()), (b"content-length", b"%d" % len(reply.body))]
        headers += [(name.encode(), value.encode()) for name, value in reply.headers.items()]
        await self.start(reply.status, headers)
        await self.send({"type": "http.response.body", "body": reply.body})

    async def write_events(self, *events: bytes) -> None:
        """Server-sent events, JSON on one line each; they leave at once, in one piece."""
        await self.write(b"".join(b"data: " + event + b"\n\n" for event in events))

    async def write(self, chunk: bytes) -> None:
        """A piece of a stream, its head with the first."""
        if not self.has_started:
            await self.start(200, EVENT_HEADERS)
        await self.send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self) -> None:
        """Of a stream."""
        await self.send({"type": "http.response.body", "body": b""})
        self.has_ended = True
