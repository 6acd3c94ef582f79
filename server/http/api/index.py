"""What this server is, for somebody who opens its address in a browser."""

from typing_extensions import TypedDict

from server.http.api.openai_errors import render_error
from server.http.api.openai_schemas import ErrorReply
from server.http.call import Call, Reply, reply_json
from server.http.docs import find_server_version
from server.http.route import Route
from server.http.state import ServerState


class Index(TypedDict):
    """Where to go from here; all but the first three are paths."""

    server: str
    version: str
    models: list[str]
    docs: str
    openapi: str
    ready: str


async def get_index(call: Call, state: ServerState) -> Reply:
    paths = {"docs": "/docs", "openapi": "/openapi.json", "ready": "/ready"}
    return reply_json({"server": "padless", "version": find_server_version(), "models": list(state.models), **paths})


ROUTES = (
    Route(
        *("GET", "/", get_index, render_error, "What this is and where to go", "health"),
        reply=Index,
        error_reply=ErrorReply,
    ),
)
