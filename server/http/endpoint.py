"""What every route that computes has in common: deadline, body, disconnect, errors, metrics.

A protocol file gives the work: bytes in, bytes out.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from time import monotonic
from types import TracebackType
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute

from server.errors import InvalidField, Protocol, describe_error
from server.http.body import ClientGone, Receive, read_body
from server.http.pipeline import HttpCall
from server.http.state import ServerState
from server.wire.job import DeadlineExceeded, EngineUnavailable

logger = logging.getLogger("padless.http")

Work = Callable[[HttpCall, ServerState, bytes], Awaitable[bytes]]
TIMEOUT_HEADER = "x-request-timeout-ms"
MAX_TIMEOUT_MS = 86_400_000.0
CLIENT_GONE_STATUS = 499
"""nginx's number; nobody reads it."""


class LeanRoute(APIRoute):
    """A route FastAPI documents and matches, and otherwise leaves alone: the endpoint takes the request as it is."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        return self.endpoint


class DisconnectWatch:
    """While it is open, a client that goes away cancels the task inside, and ClientGone comes out.

    To be opened once the body has been read: the next message can only be the disconnect.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_gone = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True
        self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watcher.cancel()
        # A second cancellation, by the server's shutdown, goes its own way.
        if self._is_gone and self._task.uncancel() == 0:
            raise ClientGone from None


async def serve_call(
    request: Request, *, route: str, protocol: Protocol, work: Work, timeout_ms: float | None = None
) -> Response:
    """Run `work` on the body and answer; every error in the protocol's shape, every outcome counted once.

    `timeout_ms`: the deadline without the client's header, if not `server.default_timeout_ms`.
    """
    state = find_state(request)
    start_s = monotonic()
    timeout_ms = state.config.server.default_timeout_ms if timeout_ms is None else timeout_ms
    call = HttpCall(route, start_s, start_s + timeout_ms / 1000)
    outcome = "failed"
    try:
        answer = await run_work(request, state, call, work)
        outcome = "ok"
        return Response(answer, media_type="application/json")
    except ClientGone:
        outcome = "cancelled"
        return Response(status_code=CLIENT_GONE_STATUS)
    except asyncio.CancelledError:
        outcome = "cancelled"
        raise
    except Exception as error:
        reply = describe_error(error, protocol)
        outcome = reply.outcome
        if reply.status == 500:
            logger.exception("%s failed, request id %s", route, request.scope.get("request_id"))
        return Response(orjson.dumps(reply.body), reply.status, reply.headers, "application/json")
    finally:
        state.metrics.observe_call(
            route=route, model=call.model, outcome=outcome, total_s=monotonic() - start_s, times=call.times
        )


async def run_work(request: Request, state: ServerState, call: HttpCall, work: Work) -> bytes:
    """Everything that may take time, under the deadline."""
    if state.is_draining:
        raise EngineUnavailable("the server is shutting down")
    timeout_ms = request.headers.get(TIMEOUT_HEADER)
    if timeout_ms is not None:
        call.deadline_s = call.start_s + parse_timeout(timeout_ms) / 1000
    timeout = asyncio.timeout(call.deadline_s - monotonic())
    try:
        async with timeout:
            body = await read_body(request, int(state.config.server.max_body_mb * 1e6))
            async with DisconnectWatch(request.receive):
                return await work(call, state, body)
    except TimeoutError:
        if not timeout.expired():
            raise
        raise DeadlineExceeded(
            f"the answer was not complete within {(call.deadline_s - call.start_s) * 1000:.0f} ms"
        ) from None


def parse_timeout(value: str) -> float:
    """Milliseconds. Raises InvalidField naming the header."""
    try:
        timeout_ms = float(value)
    except ValueError:
        timeout_ms = math.nan
    if not 0 < timeout_ms <= MAX_TIMEOUT_MS:
        raise InvalidField(
            f"{TIMEOUT_HEADER} must be a number of milliseconds above 0 and at most {MAX_TIMEOUT_MS:.0f}, "
            f"not {value[:50]!r}",
            param=TIMEOUT_HEADER,
        )
    return timeout_ms


def find_state(request: Request) -> ServerState:
    """What `create_app` was given."""
    state = request.app.state.server
    assert isinstance(state, ServerState)
    return state


def answer_json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def describe_request(schema: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body by itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
