"""The FastAPI application: routes are mounted, errors mapped. No batching, no torch."""

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from time import monotonic

import orjson
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import (
    ApiError,
    InvalidBody,
    InvalidField,
    MethodNotAllowed,
    Protocol,
    UnknownRoute,
    describe_error,
)
from server.http.api import admin, health, openai_chat, openai_completions, openai_embeddings, tei
from server.http.endpoint import LeanRoute, find_state
from server.http.state import ServerState
from server.metrics import UNKNOWN_MODEL, CallTimes, Metrics
from server.wire.job import EngineUnavailable

Endpoint = Callable[[Request], Awaitable[Response]]

logger = logging.getLogger("padless.http")

SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
LAG_PERIOD_S = 0.25
TEI_PATHS = frozenset(route.path for route in tei.router.routes if isinstance(route, LeanRoute))


def create_app(state: ServerState) -> FastAPI:
    """The application that serves `state`. Building it starts nothing; its lifespan runs one small task."""

    @asynccontextmanager
    async def measure_lag(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(watch_event_loop(state.metrics))
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    app = FastAPI(
        title="Padless",
        description="A Transformer inference server that wastes no computation on padding.",
        version=find_version(),
        lifespan=measure_lag,
        redoc_url=None,
    )
    app.state.server = state
    # The busiest first: routes are tried in order.
    for protocol in (openai_embeddings, openai_completions, openai_chat, tei, health, admin):
        app.include_router(protocol.router)
    for error in (ApiError, EngineUnavailable, RequestValidationError, HTTPException):
        app.add_exception_handler(error, answer_error)
    app.add_middleware(
        FrontDoor,
        endpoints=find_endpoints(openai_embeddings.router, openai_completions.router, openai_chat.router, tei.router),
    )
    return app


def find_endpoints(*routers: APIRouter) -> dict[str, Endpoint]:
    """The routes that take a POST and answer every error by themselves."""
    return {
        route.path: route.endpoint
        for router in routers
        for route in router.routes
        if isinstance(route, LeanRoute) and route.methods == {"POST"}
    }


def find_version() -> str:
    """Of the installed package; a bare checkout has none."""
    try:
        return version("padless")
    except PackageNotFoundError:
        return "0"


async def answer_error(request: Request, error: Exception) -> Response:
    """Errors of plain routes, and those of the framework itself, in the path's shape and never as `{"detail": ...}`."""
    reply = describe_error(translate_error(request, error), protocol_of(request.url.path))
    if isinstance(error, HTTPException):
        find_state(request).metrics.observe_call(
            route="other", model=UNKNOWN_MODEL, outcome=reply.outcome, total_s=0.0, times=CallTimes()
        )
    return Response(orjson.dumps(reply.body), reply.status, reply.headers, "application/json")


def protocol_of(path: str) -> Protocol:
    """Whose clients call this path: errors must have the shape they parse."""
    return "tei" if path in TEI_PATHS else "openai"


def translate_error(request: Request, error: Exception) -> Exception:
    """The framework's errors as ours."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return InvalidField(str(first["msg"]), param=".".join(str(part) for part in first["loc"]))
    if not isinstance(error, HTTPException):
        return error
    method, path = request.method[:20], request.url.path[:200]
    if error.status_code == 404:
        return UnknownRoute(f"there is no {method} {path}; GET /docs shows what there is")
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        return MethodNotAllowed(f"{path} does not answer {method}, only {allow}", allow=allow)
    return InvalidBody(str(error.detail)) if error.status_code < 500 else error


class FrontDoor:
    """Gives every response an `x-request-id`, the client's own where it is sane, and every bug a decent 500.

    Routes that compute are called from here, past FastAPI's own machinery: it would match, open three exit stacks and
    look for dependencies, which they have none of (measured: 0.13 ms of 0.3 ms). Their errors are mapped already.
    """

    def __init__(self, app: ASGIApp, *, endpoints: Mapping[str, Endpoint]) -> None:
        self._app = app
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = choose_request_id(scope)
        scope["request_id"] = request_id.decode()
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        endpoint = self._endpoints.get(scope["path"]) if scope["method"] == "POST" else None
        try:
            if endpoint is None:
                await self._app(scope, receive, send_with_id)
            else:
                response = await endpoint(Request(scope, receive))
                await response(scope, receive, send_with_id)
        except Exception as error:
            logger.exception("%s failed, request id %s", scope["path"], scope["request_id"])
            if has_started:
                raise
            reply = describe_error(error, protocol_of(scope["path"]))
            response = Response(orjson.dumps(reply.body), reply.status, reply.headers, "application/json")
            await response(scope, receive, send_with_id)


def choose_request_id(scope: Scope) -> bytes:
    """The client's, if it cannot break a log line or a header; else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return bytes(value) if SANE_REQUEST_ID.fullmatch(value) else secrets.token_hex(8).encode()
    return secrets.token_hex(8).encode()


async def watch_event_loop(metrics: Metrics) -> None:
    """Sleep, and see how late one wakes up."""
    while True:
        due_s = monotonic() + LAG_PERIOD_S
        await asyncio.sleep(LAG_PERIOD_S)
        metrics.event_loop_lag.observe(max(monotonic() - due_s, 0.0))
