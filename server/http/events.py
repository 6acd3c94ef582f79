"""Answers that come in pieces, as server-sent events. Deadline, disconnect, errors and metrics are `serve_call`'s."""

from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from server.http.endpoint import find_state, serve_call
from server.http.pipeline import HttpCall
from server.http.state import ServerState

DONE = b"[DONE]"
OK_STATUS = 200
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx would otherwise collect the events.
    (b"x-accel-buffering", b"no"),
]


class EventWriter:
    """Writes events to the client, the response's head with the first. Mutable: whether that has been sent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_started = False

    async def write(self, *events: bytes) -> None:
        """Events' data, JSON on one line each; they leave at once, in one piece."""
        if not self.has_started:
            self.has_started = True
            await self._send({"type": "http.response.start", "status": OK_STATUS, "headers": HEADERS})
        body = b"".join(b"data: " + event + b"\n\n" for event in events)
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def close(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})


StreamWork = Callable[[HttpCall, ServerState, bytes, EventWriter], Awaitable[bytes]]
"""Writes its answer to the EventWriter, or returns a body of JSON; never both."""


class GeneratedResponse(Response):
    """A response that is computed while it is sent, so that it can begin before it is known how it ends.

    What fails before the first event is answered as on any other route; after it, with an event that holds the error.
    """

    def __init__(self, request: Request, *, route: str, work: StreamWork) -> None:
        super().__init__()
        self._request = request
        self._route = route
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = EventWriter(send)

        async def work(call: HttpCall, state: ServerState, body: bytes) -> bytes:
            return await self._work(call, state, body, writer)

        timeout_ms = find_state(self._request).config.server.generation_timeout_ms
        response = await serve_call(
            self._request, route=self._route, protocol="openai", work=work, timeout_ms=timeout_ms
        )
        if not writer.has_started:
            await response(scope, receive, send)
            return
        if response.body:
            await writer.write(bytes(response.body))
        await writer.close()
