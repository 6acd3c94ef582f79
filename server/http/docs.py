"""The OpenAPI document and the page that shows it, made by FastAPI from the routes' own descriptions."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from server.http.api.openai_errors import render_error
from server.http.call import Call, Reply
from server.http.route import Route
from server.http.state import ServerState


def find_version() -> str:
    """Of the installed package; a bare checkout has none."""
    try:
        return version("padless")
    except PackageNotFoundError:
        return "0"


def list_doc_routes(routes: Sequence[Route]) -> tuple[Route, ...]:
    """/docs and /openapi.json, which describe `routes`."""
    docs = build_docs(routes)

    async def answer(call: Call, state: ServerState) -> Reply | None:
        await docs(call.scope, call.receive, call.forward)
        return None

    return tuple(
        Route("GET", path, answer, render_error, "This interface", "docs", is_listed=False)
        for path in ("/docs", "/openapi.json")
    )


def build_docs(routes: Sequence[Route]) -> FastAPI:
    """An application that answers /docs and /openapi.json."""
    docs = FastAPI(
        title="Padless",
        description="A Transformer inference server that wastes no computation on padding.",
        version=find_version(),
        redoc_url=None,
    )
    for route in routes:
        if not route.is_listed:
            continue
        extra = None
        if route.schema is not None:
            content = {"application/json": {"schema": dict(route.schema)}}
            extra = {"requestBody": {"required": True, "content": content}}
        docs.add_api_route(
            route.path,
            never_called,
            methods=[route.method],
            summary=route.summary,
            tags=[route.tag],
            openapi_extra=extra,
            responses={status: dict(response) for status, response in route.responses.items()},
        )
    return docs


async def never_called() -> None:
    """Routes are run by `app`."""
