"""What the application knows of a route: protocols list theirs, `app` mounts them, and `docs` describes them."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from server.errors import Kind, ServiceError
from server.http.body_limits import HeldBody
from server.http.call import JSON, Call, Reply
from server.http.state import ServerState

Answer = Callable[[Call, ServerState], Awaitable[Reply | None]]
"""None: the answer has been sent already, as a stream."""
ReadBody = Callable[[Call, HeldBody], Awaitable[bytes]]


class Shape(NamedTuple):
    """An error as a protocol writes it."""

    status: int
    body: dict[str, Any]


RenderError = Callable[[ServiceError], Shape]


@dataclass(frozen=True, slots=True)
class Route:
    """`path` may hold `{name}`, which matches anything. `schema`: of the body, which a POST has; it may be empty
    where it `needs_body` not.

    The OpenAPI document says of the answers: `reply`, the type of a 200's JSON, None where it is none; `other_replies`,
    by their media types; `error_reply`, the type of an error's JSON; `errors`, the kinds of them that a GET may answer:
    of a POST they are all possible.
    `operation_id`, `schema_name`: what clients made from that document call the route and the body; the answer
    function's name where empty, and none.
    `deadline`: which of the server's settings limits it; None: none does.
    `media_types`: of the body; the first is the schema's. `has_audio`: it may be as large as sound files may.
    `read_body`: within its limits; None: as HTTP's are.
    `is_open`: needs no key. `is_admin`: belongs on the port of its own, where there is one.
    """

    method: Literal["GET", "POST"]
    path: str
    answer: Answer
    render_error: RenderError
    summary: str
    tag: str
    schema: Mapping[str, Any] | None = None
    needs_body: bool = True
    reply: Any = None
    other_replies: Mapping[str, Any] = field(default_factory=dict)
    error_reply: Any = dict[str, Any]
    errors: tuple[Kind, ...] = ()
    operation_id: str = ""
    schema_name: str = ""
    deadline: Literal["default", "generation"] | None = None
    media_types: tuple[str, ...] = (JSON,)
    has_audio: bool = False
    read_body: ReadBody | None = None
    is_open: bool = False
    is_admin: bool = False
    is_listed: bool = True
    label: str = ""
    """In metrics; the path where empty."""
