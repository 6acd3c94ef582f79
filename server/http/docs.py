"""The OpenAPI document and the page that shows it, made by FastAPI from the routes' own descriptions.

The page's scripts come from here, not from the internet.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from fastapi_offline import FastAPIOffline

from server.errors import Kind, ServiceError
from server.http.api.openai_errors import render_error
from server.http.call import Call, Reply
from server.http.deadline import MAX_TIMEOUT_MS, TIMEOUT_HEADER
from server.http.route import Route
from server.http.state import ServerState

ASSETS = "/docs/assets"
NEVER_OF_A_ROUTE = frozenset({Kind.UNKNOWN_ROUTE, Kind.METHOD_NOT_ALLOWED})
KEY_KINDS = (Kind.UNAUTHENTICATED, Kind.FORBIDDEN)
REQUEST_ID = {"description": "Of the request, also in the log.", "schema": {"type": "string"}}
RETRY_AFTER = {"description": "Seconds to wait before another try.", "schema": {"type": "integer"}}


@cache
def find_server_version() -> str:
    """Of the installed package; a bare checkout has none."""
    try:
        return version("padless")
    except PackageNotFoundError:
        return "0"


def list_doc_routes(routes: Sequence[Route]) -> tuple[Route, ...]:
    """/docs, what that page loads, and /openapi.json, which describe `routes`: once somebody asks, as it takes half a
    second to write them."""
    build = cache(partial(build_docs, routes))

    async def answer(call: Call, state: ServerState) -> Reply | None:
        docs = await asyncio.to_thread(build)
        await docs(call.scope, call.receive, call.forward)
        return None

    return tuple(
        Route("GET", path, answer, render_error, "This interface", "docs", is_listed=False)
        for path in ("/docs", f"{ASSETS}/{{name}}", "/openapi.json")
    )


def build_docs(routes: Sequence[Route]) -> FastAPI:
    """An application that answers /docs, what that page loads, and /openapi.json."""
    docs = FastAPIOffline(
        title="Padless",
        description="A Transformer inference server that wastes no computation on padding.",
        version=find_server_version(),
        redoc_url=None,
        static_url=ASSETS,
    )
    for route in routes:
        if route.is_listed:
            docs.add_api_route(
                route.path,
                never_called,
                methods=[route.method],
                operation_id=route.operation_id or route.answer.__name__,
                summary=route.summary,
                tags=[route.tag],
                response_class=Response,
                responses=describe_answers(route),
                openapi_extra=describe_request(route),
            )
    # `docs` keeps this document, and shows it whenever it is asked for.
    docs.openapi()["components"]["schemas"].update(name_bodies(routes))
    return docs


def name_bodies(routes: Sequence[Route]) -> dict[str, Any]:
    """The bodies that have a name in the document, by that."""
    return {route.schema_name: inline_parts(route) for route in routes if route.schema_name}


async def never_called() -> None:
    raise AssertionError("Routes are run by `app`. This is a bug.")


def describe_request(route: Route) -> dict[str, Any]:
    """Parameters, and the body where there is one."""
    described: dict[str, Any] = {"parameters": list(list_parameters(route))}
    if route.schema is not None:
        schema = {"$ref": f"#/components/schemas/{route.schema_name}"} if route.schema_name else inline_parts(route)
        described["requestBody"] = {"required": route.needs_body, "content": {route.media_types[0]: {"schema": schema}}}
    return described


def inline_parts(route: Route) -> Any:
    """A body's schema that stands by itself."""
    assert route.schema is not None
    return inline(route.schema, route.schema.get("$defs", {}))


def inline(schema: Any, parts: Mapping[str, Any]) -> Any:
    """With each reference to one of its parts replaced by that: in the document it would lead nowhere. What stands
    beside a reference, such as a description, wins over what the part says."""
    if isinstance(schema, list):
        return [inline(item, parts) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    if "$ref" in schema:
        part = parts[schema["$ref"].rpartition("/")[2]]
        schema = {**part, **{key: value for key, value in schema.items() if key != "$ref"}}
    return {key: inline(value, parts) for key, value in schema.items() if key != "$defs"}


def list_parameters(route: Route) -> Iterator[dict[str, Any]]:
    if "{name}" in route.path:
        yield {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    yield {
        "name": "x-request-id",
        "in": "header",
        "description": "Comes back with the answer, if it is up to 128 letters, digits and ._:/+=@-; else a new one.",
        "schema": {"type": "string"},
    }
    if route.deadline is not None:
        yield {
            "name": TIMEOUT_HEADER.decode(),
            "in": "header",
            "description": "The answer is of no use later than so many milliseconds from now.",
            "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_MS},
        }


def describe_answers(route: Route) -> dict[int | str, dict[str, Any]]:
    """By status: the 200, and every error in the protocol's shape."""
    headers = {"x-request-id": REQUEST_ID}
    good: dict[str, Any] = {"description": "Done", "headers": headers}
    if route.reply is not None:
        good["model"] = route.reply
    if route.other_replies:
        good["content"] = dict(route.other_replies)
    answers: dict[int | str, dict[str, Any]] = {200: good}
    for kind in list_kinds(route):
        status = route.render_error(make_example(kind)).status
        answers[status] = {"description": HTTPStatus(status).phrase, "model": route.error_reply, "headers": headers}
        if kind in (Kind.OVERLOADED, Kind.UNAVAILABLE):
            answers[status]["headers"] = headers | {"retry-after": RETRY_AFTER}
    return answers


def list_kinds(route: Route) -> list[Kind]:
    """Of errors that it may answer."""
    if route.method == "POST":
        return [kind for kind in Kind if kind not in NEVER_OF_A_ROUTE]
    return [*route.errors, *(() if route.is_open else KEY_KINDS), Kind.INTERNAL]


def make_example(kind: Kind) -> ServiceError:
    error: ServiceError = type("Example", (ServiceError,), {"kind": kind})("")
    return error
