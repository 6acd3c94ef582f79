"""Alive, and ready: two questions that orchestrators ask separately."""

from fastapi import APIRouter, Request, Response

from server.http.endpoint import LeanRoute, answer_json, find_state
from server.http.pipeline import describe_statuses
from server.http.state import ServerState
from server.wire.job import EngineUnavailable

router = APIRouter(route_class=LeanRoute, tags=["health"])


@router.get("/health", summary="The HTTP process answers")
@router.get("/healthz", include_in_schema=False)
@router.get("/ping", include_in_schema=False)
async def get_health(request: Request) -> Response:
    return answer_json({"status": "alive"})


@router.get("/ready", summary="Every replica of every model has computed something recently")
async def get_ready(request: Request) -> Response:
    state = find_state(request)
    problems = find_problems(state)
    if problems:
        raise EngineUnavailable("; ".join(problems))
    return answer_json({"status": "ready", "models": list(state.models)})


def find_problems(state: ServerState) -> list[str]:
    """Why no traffic should be sent here; empty if there is no reason."""
    if state.is_draining:
        return ["the server is shutting down"]
    problems = []
    for model in state.models.values():
        statuses = model.engine.status()
        if not statuses or not all(status.is_ready for status in statuses):
            problems.append(f"model {model.name!r} is not ready: {describe_statuses(statuses)}")
    return problems
