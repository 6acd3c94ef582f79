"""Alive, and ready: two questions that orchestrators ask separately."""

from dataclasses import replace
from time import monotonic

from typing_extensions import TypedDict

from server.errors import EngineUnavailable, Kind
from server.http.api.openai_errors import render_error
from server.http.api.openai_schemas import ErrorReply
from server.http.call import Call, Reply, reply_json
from server.http.endpoint import describe_statuses
from server.http.route import Route
from server.http.state import ServerState


class Alive(TypedDict):
    status: str


class Ready(Alive):
    models: list[str]


async def get_health(call: Call, state: ServerState) -> Reply:
    lost = [] if state.is_draining else state.list_lost(monotonic())
    if lost:
        raise EngineUnavailable(f"no replica has been ready for too long of: {', '.join(lost)}")
    return reply_json({"status": "alive"})


async def get_ready(call: Call, state: ServerState) -> Reply:
    problems = find_problems(state)
    if problems:
        raise EngineUnavailable("; ".join(problems))
    return reply_json({"status": "ready", "models": list(state.models)})


def find_problems(state: ServerState) -> list[str]:
    """Why no traffic should be sent here; empty if there is no reason."""
    if state.is_draining:
        return ["the server is shutting down"]
    problems = []
    for model in state.models.values():
        statuses = model.engine.statuses()
        if not statuses or not all(status.is_ready for status in statuses):
            problems.append(f"model {model.name!r} is not ready: {describe_statuses(statuses)}")
    return problems


HEALTH = Route(
    *("GET", "/health", get_health, render_error, "The server is able to serve", "health"),
    operation_id="health",
    reply=Alive,
    error_reply=ErrorReply,
    is_open=True,
)
ROUTES = (
    HEALTH,
    replace(HEALTH, path="/healthz", is_listed=False),
    replace(HEALTH, path="/ping", is_listed=False),
    Route(
        *("GET", "/ready", get_ready, render_error, "Every replica of every model computes", "health"),
        reply=Ready,
        error_reply=ErrorReply,
        errors=(Kind.UNAVAILABLE,),
        is_open=True,
    ),
)
