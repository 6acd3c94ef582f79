"""The Open Inference Protocol v2 over REST, as KServe and Triton's clients speak it, with the binary extension."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NotRequired

import orjson
from pydantic import BaseModel, Field, StrictBool
from typing_extensions import TypedDict

from server.errors import InvalidBody, InvalidField, Kind, ServiceError
from server.http.api.health import find_problems
from server.http.api.oip_model import (
    EXTENSIONS,
    PLATFORM,
    VERSION,
    InferRequest,
    ModelConfig,
    ModelIndex,
    ModelMetadata,
    configure_model,
    describe_model,
    find_model_version,
    infer_rows,
    is_ready,
    list_models,
    refuse_loading,
)
from server.http.api.oip_outputs import Rows
from server.http.api.oip_stats import ModelStats, count_models
from server.http.api.oip_tensors import cut_tensors, write_output
from server.http.api.statuses import find_status
from server.http.body import MAX_LENGTH_DIGITS, parse_body, receive_body
from server.http.body_limits import HeldBody
from server.http.call import JSON, Call, Reply, reply_json
from server.http.docs import find_server_version
from server.http.replies import INLINE_NUMBERS, write_reply
from server.http.route import Route, Shape
from server.http.state import ServedModel, ServerState

OCTETS = "application/octet-stream"
HEADER_LENGTH = "Inference-Header-Content-Length"


class IndexRequest(BaseModel):
    """Body of `POST /v2/repository/index`, which may be empty."""

    ready: StrictBool = Field(False, description="Only models that can be asked.")


class LoadRequest(BaseModel):
    """Body of the routes that load and unload models, which are not supported."""


class ServerMetadata(TypedDict):
    name: str
    version: str
    extensions: list[str]


class ModelReady(TypedDict):
    name: str
    ready: bool


class InferReply(TypedDict):
    """`id` is there if the request has one."""

    model_name: str
    model_version: str
    outputs: list[dict[str, Any]]
    id: NotRequired[str]


class StatsReply(TypedDict):
    model_stats: list[ModelStats]


class OipErrorReply(TypedDict):
    error: str


async def get_server(call: Call, state: ServerState) -> Reply:
    extensions = sorted(["binary_tensor_data", *EXTENSIONS])
    return reply_json({"name": PLATFORM, "version": find_server_version(), "extensions": extensions})


async def get_live(call: Call, state: ServerState) -> Reply:
    return reply_json({"live": True})


async def get_server_ready(call: Call, state: ServerState) -> Reply:
    is_all_ready = not find_problems(state)
    return reply_json({"ready": is_all_ready}, 200 if is_all_ready else 503)


async def get_model_facts(call: Call, state: ServerState) -> Reply:
    return reply_json(describe_model(find_model(call.rest, state)))


async def get_model_config(call: Call, state: ServerState) -> Reply:
    return reply_json(configure_model(find_model(call.rest, state)))


async def get_model_ready(call: Call, state: ServerState) -> Reply:
    model = find_model(call.rest, state)
    ready = is_ready(model, state)
    return reply_json({"name": model.full_name, "ready": ready}, 200 if ready else 503)


async def get_model_stats(call: Call, state: ServerState) -> Reply:
    return reply_json({"model_stats": await count_models([find_model(call.rest, state).name], state.metrics)})


async def get_all_stats(call: Call, state: ServerState) -> Reply:
    return reply_json({"model_stats": await count_models(list(state.models), state.metrics)})


async def index_repository(call: Call, state: ServerState) -> Reply:
    asked = parse_body(IndexRequest, call.take_body() or b"{}")
    return reply_json(list_models(state, only_ready=asked.ready))


async def load_model(call: Call, state: ServerState) -> Reply:
    raise refuse_loading()


async def unload_model(call: Call, state: ServerState) -> Reply:
    raise refuse_loading()


def find_model(rest: str, state: ServerState) -> ServedModel:
    """`{model}[/versions/1]`. Raises UnknownModel and its kinds."""
    name, found, version = rest.partition("/versions/")
    return find_model_version(name, version if found else VERSION, state)


async def infer_tensors(call: Call, state: ServerState) -> Reply:
    model = find_model(call.rest, state)
    call.model = model.name
    asked, rest = split_body(call)
    rows = await infer_rows(call, model, asked, cut_tensors(asked.inputs, rest))
    write = partial(write_answer, asked, model.full_name, rows)
    return await write_reply(write, sum(values.size for values in rows.values()), INLINE_NUMBERS, model)


async def read_tensors(call: Call, held: HeldBody) -> bytes:
    """A body whose JSON is quick to parse: of what is behind it nothing is, whatever bytes there are.

    Raises what `body.read_body` does, and InvalidField.
    """
    body = await receive_body(call, held)
    await held.settle(body[: find_length(call, body)])
    return body


def split_body(call: Call) -> tuple[InferRequest, memoryview]:
    """The JSON, and the tensors behind it. Raises InvalidBody, InvalidField."""
    body = call.take_body()
    length = find_length(call, body)
    return parse_body(InferRequest, body[:length]), memoryview(body)[length:]


def find_length(call: Call, body: bytes) -> int:
    """Of the JSON, which is all there is unless the header says otherwise. Raises InvalidBody, InvalidField."""
    given = call.header(HEADER_LENGTH.lower().encode())
    if given is None:
        return len(body)
    if not given.isdecimal() or len(given) > MAX_LENGTH_DIGITS or int(given) > len(body):
        raise InvalidField(
            f"{HEADER_LENGTH} must be the length of the JSON, at most {len(body)}, not {given[:20]!r}",
            param=HEADER_LENGTH,
        )
    if given == "0":
        raise InvalidBody(
            f"{HEADER_LENGTH} 0, a body without JSON, is not supported; send the tensors' names and shapes"
        )
    return int(given)


def write_answer(asked: InferRequest, model: str, rows: Mapping[str, Rows]) -> Reply:
    written = [write_output(name, values, is_binary=asked.is_binary(name)) for name, values in rows.items()]
    answer = {"model_name": model, "model_version": VERSION, "outputs": [entry for entry, _ in written]}
    head = orjson.dumps(answer if asked.id is None else {"id": asked.id, **answer})
    tail = b"".join(raw for _, raw in written)
    if not tail:
        return Reply(head)
    return Reply(head + tail, 200, OCTETS, {HEADER_LENGTH: str(len(head))})


def render_error(error: ServiceError) -> Shape:
    """Triton answers a full queue with 503; 429 with its Retry-After says more, and clients read it."""
    return Shape(find_status(error.kind), {"error": error.message})


TAG = "open-inference-protocol"
ROUTES = (
    Route(
        *("GET", "/v2", get_server, render_error, "The server and its extensions", TAG),
        reply=ServerMetadata,
        error_reply=OipErrorReply,
    ),
    Route(
        *("GET", "/v2/health/live", get_live, render_error, "The server answers", TAG),
        reply=dict[str, bool],
        error_reply=OipErrorReply,
        is_open=True,
    ),
    Route(
        *("GET", "/v2/health/ready", get_server_ready, render_error, "All models compute", TAG),
        reply=dict[str, bool],
        error_reply=OipErrorReply,
        errors=(Kind.UNAVAILABLE,),
        is_open=True,
    ),
    Route(
        *("GET", "/v2/models/{name}", get_model_facts, render_error, "A model's tensors", TAG),
        reply=ModelMetadata,
        error_reply=OipErrorReply,
        errors=(Kind.UNKNOWN_MODEL, Kind.WRONG_TASK),
    ),
    Route(
        *("GET", "/v2/models/{name}/ready", get_model_ready, render_error, "A model computes", TAG),
        reply=ModelReady,
        error_reply=OipErrorReply,
        errors=(Kind.UNKNOWN_MODEL, Kind.UNAVAILABLE),
    ),
    Route(
        *("GET", "/v2/models/{name}/config", get_model_config, render_error, "A model's configuration", TAG),
        reply=ModelConfig,
        error_reply=OipErrorReply,
        errors=(Kind.UNKNOWN_MODEL, Kind.WRONG_TASK),
    ),
    Route(
        *("GET", "/v2/models/{name}/stats", get_model_stats, render_error, "What a model has done", TAG),
        reply=StatsReply,
        error_reply=OipErrorReply,
        errors=(Kind.UNKNOWN_MODEL,),
    ),
    Route(
        *("GET", "/v2/models/stats", get_all_stats, render_error, "What all models have done", TAG),
        reply=StatsReply,
        error_reply=OipErrorReply,
    ),
    Route(
        *("POST", "/v2/repository/index", index_repository, render_error, "The models there are", TAG),
        schema=IndexRequest.model_json_schema(),
        needs_body=False,
        reply=list[ModelIndex],
        error_reply=OipErrorReply,
    ),
    *(
        Route(
            *("POST", f"/v2/repository/models/{{name}}/{verb}", answer, render_error, f"Not supported: {verb}", TAG),
            schema=LoadRequest.model_json_schema(),
            error_reply=OipErrorReply,
            is_listed=False,
        )
        for verb, answer in (("load", load_model), ("unload", unload_model))
    ),
    Route(
        *("POST", "/v2/models/{name}/infer", infer_tensors, render_error, "Compute", TAG),
        schema=InferRequest.model_json_schema(),
        reply=InferReply,
        error_reply=OipErrorReply,
        deadline="default",
        media_types=(JSON, OCTETS),
        read_body=read_tensors,
    ),
)
