"""Methods of gRPC as routes: a message is a body, and a status the shape of an error. So they go through the chain that
all calls do, whose limits they share; `grpc_server` is what speaks HTTP/2 with their clients."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from server.errors import Kind, ServiceError
from server.http.api.statuses import find_status
from server.http.body_limits import HeldBody
from server.http.call import Call, Reply
from server.http.protobuf import LENGTH, Message, MessageReader, Parsed, write, write_varint
from server.http.route import Answer, Route, Shape
from server.http.state import ServerState

MEDIA_TYPE = "application/grpc"
CODES: Mapping[Kind, str] = {
    Kind.UNAUTHENTICATED: "UNAUTHENTICATED",
    Kind.FORBIDDEN: "PERMISSION_DENIED",
    Kind.UNKNOWN_MODEL: "NOT_FOUND",
    Kind.UNKNOWN_ROUTE: "UNIMPLEMENTED",
    Kind.METHOD_NOT_ALLOWED: "UNIMPLEMENTED",
    Kind.WRONG_TASK: "FAILED_PRECONDITION",
    Kind.TOKENIZER: "FAILED_PRECONDITION",
    Kind.UNSERVABLE: "FAILED_PRECONDITION",
    Kind.BODY_TOO_LARGE: "RESOURCE_EXHAUSTED",
    Kind.OVERLOADED: "RESOURCE_EXHAUSTED",
    Kind.UNAVAILABLE: "UNAVAILABLE",
    Kind.DEADLINE: "DEADLINE_EXCEEDED",
    Kind.ENGINE_FAILURE: "INTERNAL",
    Kind.INVALID_ANSWER: "INTERNAL",
    Kind.INTERNAL: "INTERNAL",
}
"""gRPC's status of an error, in every protocol; of other kinds INVALID_ARGUMENT. `grpc.StatusCode` has the names."""
ITEM_NUMBER = 1
"""The field that `Joined` messages have their items in."""

Streams = Literal["none", "each", "all"]
"""Of the client's messages. `each`: is a call by itself, and the answers come in their order. `all`: are one call."""
TellError = Callable[[bytes, str], bytes]
"""A client's message, and what is wrong with it, to the message that tells so."""
Watch = Callable[[ServerState], object]


@dataclass(frozen=True, slots=True)
class Rpc:
    """`tell_error` None: an error ends the RPC; else a stream goes on behind what it says. `watch` None: there is one
    answer; else another one whenever what it gives is another."""

    route: Route
    streams: Streams = "none"
    tell_error: TellError | None = None
    watch: Watch | None = None


def list_rpcs(
    service: str, methods: Mapping[str, Answer], streams: Streams = "none", *, tell_error: TellError | None = None
) -> tuple[Rpc, ...]:
    """Methods that compute: they need a key, have a deadline, and are refused while the server shuts down."""
    return tuple(Rpc(build_route(service, name, answer), streams, tell_error) for name, answer in methods.items())


def list_questions(
    service: str, methods: Mapping[str, Answer], *, is_open: bool = False, watch: Watch | None = None
) -> tuple[Rpc, ...]:
    """Methods that only tell something."""
    return tuple(
        Rpc(
            Route("GET", f"/{service}/{name}", answer, render_status, name, service, is_open=is_open, is_listed=False),
            watch=watch,
        )
        for name, answer in methods.items()
    )


def build_route(service: str, name: str, answer: Answer) -> Route:
    return Route(
        *("POST", f"/{service}/{name}", answer, render_status, name, service),
        deadline="default",
        media_types=(MEDIA_TYPE,),
        read_body=read_message,
        is_listed=False,
    )


async def receive_message(call: Call) -> bytes:
    """All at once, as it has come."""
    message = await call.receive()
    body: bytes = message["body"]
    return body


async def read_message(call: Call, held: HeldBody) -> bytes:
    """Raises BodyTooLarge, Overloaded."""
    body = await receive_message(call)
    held.add(len(body))
    await held.settle()
    return body


async def parse_question(call: Call, state: ServerState, message: type[Parsed]) -> Parsed:
    """Of a method that only tells something. Raises InvalidBody, BodyTooLarge."""
    call.body = await receive_message(call)
    return parse_message(call, state, message)


def parse_message(call: Call, state: ServerState, message: type[Parsed]) -> Parsed:
    """Raises InvalidBody, BodyTooLarge."""
    return MessageReader(state.config.server.max_body_items).read(message, call.take_body())


def join_messages(messages: list[bytes]) -> bytes:
    """As one, whose field ITEM_NUMBER they are."""
    tag = write_varint(ITEM_NUMBER << 3 | LENGTH)
    return b"".join(part for message in messages for part in (tag, write_varint(len(message)), message))


def reply_message(message: Message) -> Reply:
    return Reply(write(message), content_type=MEDIA_TYPE)


def render_status(error: ServiceError) -> Shape:
    """The status is HTTP's, for the access log."""
    code = CODES.get(error.kind, "INVALID_ARGUMENT")
    return Shape(find_status(error.kind), {"code": code, "message": error.message})
