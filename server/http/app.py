"""The ASGI application: one explicit chain that every request goes through, whatever its route. Knows no task.

    request id -> origin -> key -> route -> the key's limits -> draining? -> media type -> deadline
    -> body within its limits -> answer -> errors in the protocol's shape -> metrics and access log

FastAPI describes the routes (`docs`); it is not asked to run them: matching, opening three exit stacks and looking for
dependencies costs more than the rest of the way (measured: 0.13 of 0.3 ms).
"""

import asyncio
import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from time import monotonic

import orjson
from starlette.types import Receive, Scope, Send

from server.errors import EngineUnavailable, Kind, MethodNotAllowed, ServiceError, UnknownRoute
from server.http.api import (
    admin,
    classify,
    cohere_embed,
    health,
    hf_inference,
    index,
    multi_vector,
    oip,
    openai_audio,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_models,
    pooling,
    rerank,
    rerank_either,
    score,
    tei,
    tei_embed,
    tei_embed_all,
    tei_rerank,
    tei_sparse,
    text2text,
)
from server.http.api.openai_errors import render_error
from server.http.body import check_media_type
from server.http.body_limits import BodyBudget
from server.http.call import SANE_REQUEST_ID, Call, ClientGone, Reply
from server.http.deadline import run_in_time, settle_deadline
from server.http.docs import list_doc_routes
from server.http.keys import Keyring
from server.http.origin import answer_preflight, check_origin
from server.http.retry import describe_retry
from server.http.route import RenderError, Route
from server.http.state import ServerState

logger = logging.getLogger("padless.http")
access_logger = logging.getLogger("padless.access")

ROUTES: tuple[Route, ...] = (
    *openai_embeddings.ROUTES,
    *openai_completions.ROUTES,
    *openai_chat.ROUTES,
    *text2text.ROUTES,
    *openai_audio.ROUTES,
    *openai_models.ROUTES,
    *tei.ROUTES,
    *tei_sparse.ROUTES,
    *hf_inference.ROUTES,
    *oip.ROUTES,
    *tei_embed.ROUTES,
    *tei_embed_all.ROUTES,
    *multi_vector.ROUTES,
    *pooling.ROUTES,
    *cohere_embed.ROUTES,
    *tei_rerank.ROUTES,
    *rerank.ROUTES,
    *rerank_either.ROUTES,
    *score.ROUTES,
    *classify.ROUTES,
    *health.ROUTES,
    *index.ROUTES,
    *admin.ROUTES,
)
WATCH_PERIOD_S = 0.25
CLIENT_GONE_STATUS = 499
"""nginx's number, for the access log; nobody reads it."""
OUTCOMES: Mapping[Kind, str] = {
    Kind.OVERLOADED: "rejected",
    Kind.UNAVAILABLE: "unavailable",
    Kind.DEADLINE: "deadline",
    Kind.ENGINE_FAILURE: "failed",
    Kind.INVALID_ANSWER: "failed",
    Kind.INTERNAL: "failed",
}
"""What metrics count; of other kinds "invalid"."""


class App:
    """Serves `state`. Mutable: the next request's number, what is held of bodies, and what keys have done lately."""

    def __init__(
        self,
        state: ServerState,
        routes: Sequence[Route] = ROUTES,
        *,
        needs_keys: bool = True,
        peer: "App | None" = None,
    ) -> None:
        """`peer`: whose limits, of keys and of bodies, are also this one's."""
        self.state = state
        http = state.config.server
        keyring = Keyring(
            state.keys if needs_keys else (), allow_priority=http.allow_priority, num_workers=http.http_workers
        )
        self.keyring: Keyring = keyring if peer is None else peer.keyring
        self.bodies: BodyBudget = BodyBudget(http) if peer is None else peer.bodies
        routes = (*routes, *list_doc_routes(routes))
        self.routes = {(route.method, route.path): route for route in routes}
        self.open_paths = {route.path for route in routes if route.is_open}
        self.patterns = list_patterns(routes)
        self.shapes = {route.path: route.render_error for route in routes}
        self.access_log = state.config.server.access_log
        self.prefix, self.numbers = secrets.token_hex(6), count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await run_lifespan(self.state, receive, send)
            return
        if scope["type"] != "http":
            return
        call = Call(scope, receive, send, self.keyring.nobody)
        call.request_id = self.choose_request_id(call)
        route: Route | None = None
        outcome = "failed"
        try:
            call.extra_headers = check_origin(call, self.state.config.server.cors_origins)
            reply = answer_preflight(call)
            if reply is not None:
                await call.answer(reply)
            else:
                self.identify(call)
                route = self.find_route(call)
                await self.serve(call, route)
            outcome = "ok"
        except ClientGone:
            outcome, call.status = "cancelled", call.status or CLIENT_GONE_STATUS
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except Exception as error:
            outcome = await self.answer_error(call, error)
        finally:
            self.note(call, route, outcome)

    def identify(self, call: Call) -> None:
        """Before it is known whether there is such a route: only the open ones need no key. Raises Unauthenticated."""
        if call.path not in self.open_paths:
            call.key = self.keyring.identify(call.scope["headers"])

    async def serve(self, call: Call, route: Route) -> None:
        """Everything between a known route and its answer. Raises ServiceError, ClientGone."""
        if route.is_admin:
            call.key.check_admin()
        state = self.state if route.is_admin or route.is_open else self.state.narrow(call.key)
        with call.key.enter():
            if route.method == "POST":
                if state.is_draining:
                    raise EngineUnavailable("the server is shutting down")
                check_media_type(call, route.media_types)
                settle_deadline(call, route, state.config.server)
            reply = await run_in_time(call, route, state, self.bodies)
            if reply is not None:
                await call.answer(reply)

    def find_route(self, call: Call) -> Route:
        """Raises UnknownRoute, MethodNotAllowed."""
        method, path = call.scope["method"], call.path
        template = self.find_template(call)
        route = self.routes.get(("GET" if method == "HEAD" else method, template))
        if route is not None:
            return route
        allowed = sorted(known for known, known_path in self.routes if known_path == template)
        if allowed:
            allow = ", ".join(allowed)
            raise MethodNotAllowed(f"{path[:200]} does not answer {method[:20]}, only {allow}", allow=allow)
        raise UnknownRoute(f"there is no {method[:20]} {path[:200]}; GET /docs shows what there is")

    def find_renderer(self, call: Call) -> RenderError:
        """Of the protocol that the path belongs to, and where several share it, the method."""
        template = self.find_template(call)
        route = self.routes.get((call.scope["method"], template))
        return self.shapes.get(template, render_error) if route is None else route.render_error

    def find_template(self, call: Call) -> str:
        """The path, or that of the route whose `{name}` stands for a part of it."""
        if call.path in self.shapes:
            return call.path
        for start, end, path in self.patterns:
            if call.path.startswith(start) and call.path.endswith(end) and len(call.path) > len(start) + len(end):
                call.rest = call.path[len(start) : len(call.path) - len(end)]
                return path
        return call.path

    async def answer_error(self, call: Call, error: Exception) -> str:
        """In the shape that clients of this path parse; text of unforeseen errors stays in the log: it may hold the
        client's data."""
        if not isinstance(error, ServiceError):
            logger.error("%s failed, request id %s", call.path, call.request_id.decode(), exc_info=error)
            error = ServiceError("internal error; the server's log has it under this request id")
        elif error.kind in (Kind.ENGINE_FAILURE, Kind.INVALID_ANSWER):
            logger.error("%s failed, request id %s: %s", call.path, call.request_id.decode(), error.message)
        shape = self.find_renderer(call)(error)
        body = orjson.dumps(shape.body)
        if call.has_started:  # a stream: its last event says what went wrong
            await call.write_events(body)
            await call.end()
        else:
            await call.answer(Reply(body, shape.status, headers=describe_retry(error)))
        return OUTCOMES.get(error.kind, "invalid")

    def note(self, call: Call, route: Route | None, outcome: str) -> None:
        if route is None or route.method == "POST":
            label = "other" if route is None else route.label or route.path
            total_s = monotonic() - call.start_s
            self.state.metrics.observe_call(
                route=label, model=call.model, outcome=outcome, total_s=total_s, times=call.times
            )
        if self.keyring.is_needed and call.path not in self.open_paths:
            self.state.metrics.count_key(call.key.name, outcome)
        is_probe = route is not None and route.is_open
        if self.access_log == "all" or (self.access_log == "failures" and outcome != "ok" and not is_probe):
            log_access(call, outcome)

    def choose_request_id(self, call: Call) -> bytes:
        """The client's, if it is sane; else a new one."""
        given = call.request_headers.get(b"x-request-id")
        if given is not None and SANE_REQUEST_ID.fullmatch(given):
            return given
        return f"{self.prefix}{next(self.numbers):08x}".encode()


def list_patterns(routes: Iterable[Route]) -> list[tuple[str, str, str]]:
    """What stands before and behind `{name}`, and the whole path; what has more behind it is looked at first."""
    paths = dict.fromkeys(route.path for route in routes if "{name}" in route.path)
    patterns = [(*path.partition("{name}")[::2], path) for path in paths]
    return sorted(patterns, key=lambda pattern: len(pattern[1]), reverse=True)


def log_access(call: Call, outcome: str) -> None:
    """One line a request, as JSON, of what no client can forge: it is escaped."""
    client = call.scope.get("client") or ("-", 0)
    line = {
        "client": client[0],
        "method": call.scope["method"],
        "path": call.path[:200],
        "status": call.status,
        "outcome": outcome,
        "key": call.key.name,
        "model": call.model,
        "num_inputs": call.times.num_inputs,
        "num_tokens": call.times.num_tokens,
        "total_ms": round((monotonic() - call.start_s) * 1000, 2),
        "request_id": call.request_id.decode(),
    }
    access_logger.info("%s", orjson.dumps(line).decode())


async def run_lifespan(state: ServerState, receive: Receive, send: Send) -> None:
    """One small task between start and stop."""
    assert (await receive())["type"] == "lifespan.startup"
    task = asyncio.create_task(watch_process(state))
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await send({"type": "lifespan.shutdown.complete"})


async def watch_process(state: ServerState) -> None:
    """Sleep, see how late one wakes up, and which models can be served."""
    while True:
        due_s = monotonic() + WATCH_PERIOD_S
        await asyncio.sleep(WATCH_PERIOD_S)
        now_s = monotonic()
        state.metrics.event_loop_lag.observe(max(now_s - due_s, 0.0))
        state.note_ready(now_s)
