"""The Open Inference Protocol v2 over REST, as KServe and Triton's clients speak it, with the binary extension."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, NotRequired

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from server.errors import InvalidBody, InvalidField, Kind, ServiceError, UnknownModel
from server.http.api.fields import Label, Options
from server.http.api.health import find_problems
from server.http.api.oip_tensors import InputTensor, cut_tensors, read_numbers, read_texts, write_output
from server.http.api.statuses import find_status
from server.http.body import parse_body
from server.http.call import JSON, Call, Reply, reply_json
from server.http.docs import find_version
from server.http.endpoint import TextJob, run_job
from server.http.replies import INLINE_NUMBERS, write_reply
from server.http.route import Route, Shape
from server.http.state import ServedModel, ServerState
from server.tasks import classify, embed
from server.tasks.task import Task
from server.text.inputs import Input
from server.text.prompts import find_default
from server.wire.job import TokenSequence

OCTETS = "application/octet-stream"
HEADER_LENGTH = "Inference-Header-Content-Length"
EXTENSIONS = ["binary_tensor_data"]
VERSION = "1"
"""Of every model: there are no others."""
IDS, MASK, TYPES, TEXT = "input_ids", "attention_mask", "token_type_ids", "text"
TASKS = (embed.TASK, classify.TASK)
"""What is asked of models here; the first that a model can do."""


EXAMPLE = {"name": TEXT, "shape": [1], "datatype": "BYTES", "data": ["Hello, world"]}


class OutputWish(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: Label
    parameters: Options | None = None


class InferRequest(BaseModel):
    """Body of `POST /v2/models/{name}/infer`."""

    model_config = ConfigDict(extra="ignore")

    id: Label | None = None
    parameters: Options | None = None
    inputs: Annotated[
        list[InputTensor],
        Field(
            max_length=3,
            examples=[[EXAMPLE]],
            description="`text` of BYTES; or `input_ids` [n, width] with `attention_mask`, whose zeros are padding, "
            "and `token_type_ids` if need be",
        ),
    ]
    outputs: Annotated[list[OutputWish], Field(max_length=8)] | None = None

    def is_binary(self, name: str) -> bool:
        """Whether an output is wanted behind the JSON: what is said of it counts before what is said of all."""
        wish = next((wish for wish in self.outputs or () if wish.name == name), None)
        said = (wish.parameters or {}).get("binary_data") if wish else None
        return bool((self.parameters or {}).get("binary_data_output") if said is None else said)


class ServerMetadata(TypedDict):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(TypedDict):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(TypedDict):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(TypedDict):
    name: str
    ready: bool


class InferReply(TypedDict):
    """`id` is there if the request has one."""

    model_name: str
    model_version: str
    outputs: list[dict[str, Any]]
    id: NotRequired[str]


class OipErrorReply(TypedDict):
    error: str


async def get_server(call: Call, state: ServerState) -> Reply:
    return reply_json({"name": "padless", "version": find_version(), "extensions": EXTENSIONS})


async def get_live(call: Call, state: ServerState) -> Reply:
    return reply_json({"live": True})


async def get_server_ready(call: Call, state: ServerState) -> Reply:
    is_ready = not find_problems(state)
    return reply_json({"ready": is_ready}, 200 if is_ready else 503)


async def get_model_facts(call: Call, state: ServerState) -> Reply:
    return reply_json(describe_model(find_model(call.rest, state)))


async def get_model_ready(call: Call, state: ServerState) -> Reply:
    model = find_model(call.rest, state)
    is_ready = not state.is_draining and any(status.is_ready for status in model.engine.statuses())
    return reply_json({"name": model.name, "ready": is_ready}, 200 if is_ready else 503)


def find_model(rest: str, state: ServerState) -> ServedModel:
    """`{model}[/versions/1]`. Raises UnknownModel and its kinds."""
    name, found, version = rest.partition("/versions/")
    if found and version != VERSION:
        raise UnknownModel(f"model {name[:100]!r} has no version {version[:20]!r}; it has {VERSION}", param="model")
    return state.find_model(name)


def describe_model(model: ServedModel) -> ModelMetadata:
    _, outputs = find_outputs(model)
    names = [TensorMetadata(name=name, datatype="INT64", shape=[-1, -1]) for name in (IDS, MASK, TYPES)]
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": "padless",
        "inputs": [TensorMetadata(name=TEXT, datatype="BYTES", shape=[-1]), *names],
        "outputs": [TensorMetadata(name=name, datatype="FP32", shape=[-1, width]) for name, width in outputs.items()],
    }


def find_outputs(model: ServedModel) -> tuple[Task, dict[str, int]]:
    """What is asked of the model, and how wide its outputs are, by name. Raises WrongTask."""
    task = next((task for task in TASKS if task.can_use(model.info)), TASKS[0])
    model = model.pick_head(task)
    return task, {spec.name: model.info.output_dim for spec in model.head.describe_graph(model.info)}


async def infer_tensors(call: Call, state: ServerState) -> Reply:
    model = find_model(call.rest, state)
    call.model = model.name
    task, outputs = find_outputs(model)
    model = model.pick_head(task)
    asked, rest = split_body(call)
    for wish in asked.outputs or ():
        if wish.name not in outputs:
            raise InvalidField(f"outputs: there is no {wish.name!r}; there are {', '.join(outputs)}", param="outputs")
    inputs = list_inputs(asked.inputs, rest)
    job = TextJob(
        *(task, inputs, "inputs", task.params()),
        prompt=find_default(model.info),
        truncation=model.config.limits.truncation,
    )
    arrays = await run_job(call, model, job)
    wanted = [wish.name for wish in asked.outputs] if asked.outputs else list(outputs)
    rows = {name: arrays[name].values for name in wanted}
    write = partial(write_answer, asked, model.name, rows)
    return await write_reply(write, sum(values.size for values in rows.values()), INLINE_NUMBERS, model)


def split_body(call: Call) -> tuple[InferRequest, memoryview]:
    """The JSON, and the tensors behind it. Raises InvalidBody, InvalidField."""
    given = call.header(HEADER_LENGTH.lower().encode())
    body = call.take_body()
    if given is None:
        return parse_body(InferRequest, body), memoryview(b"")
    if not given.isdecimal() or int(given) > len(body):
        raise InvalidField(
            f"{HEADER_LENGTH} must be the length of the JSON, at most {len(body)}, not {given[:20]!r}",
            param=HEADER_LENGTH,
        )
    if given == "0":
        raise InvalidBody(
            f"{HEADER_LENGTH} 0, a body without JSON, is not supported; send the tensors' names and shapes"
        )
    return parse_body(InferRequest, body[: int(given)]), memoryview(body)[int(given) :]


def list_inputs(tensors: list[InputTensor], rest: memoryview) -> list[Input]:
    """One for each row. Raises InvalidField."""
    parts = dict(zip([tensor.name for tensor in tensors], cut_tensors(tensors, rest), strict=True))
    named = {tensor.name: tensor for tensor in tensors}
    unknown = named.keys() - {IDS, MASK, TYPES, TEXT}
    if unknown or len(named) < len(tensors) or (TEXT in named) == (IDS in named) or (TEXT in named and len(named) > 1):
        raise InvalidField(
            f"inputs must be {TEXT!r} alone, or {IDS!r} and, each at most once, {MASK!r} and {TYPES!r}", param="inputs"
        )
    if TEXT in named:
        return list(read_texts(named[TEXT], parts[TEXT]))
    arrays = {name: np.atleast_2d(read_numbers(tensor, parts[name])) for name, tensor in named.items()}
    return list(list_rows(arrays))


def list_rows(arrays: Mapping[str, npt.NDArray[np.int64]]) -> list[TokenSequence]:
    """Rows without their padding. Raises InvalidField."""
    ids = arrays[IDS]
    if ids.ndim != 2 or any(array.shape != ids.shape for array in arrays.values()):
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise InvalidField(f"inputs must have one shape of two dimensions; they have {shapes}", param="inputs")
    keeps = arrays[MASK] != 0 if MASK in arrays else np.ones(ids.shape, np.bool_)
    types = arrays.get(TYPES)
    return [
        TokenSequence(ids[row][keep], None if types is None else types[row][keep].astype(np.int32))
        for row, keep in enumerate(keeps)
    ]


def write_answer(asked: InferRequest, model: str, rows: Mapping[str, npt.NDArray[np.float32]]) -> Reply:
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
        *("POST", "/v2/models/{name}/infer", infer_tensors, render_error, "Compute", TAG),
        schema=InferRequest.model_json_schema(),
        reply=InferReply,
        error_reply=OipErrorReply,
        deadline="default",
        media_types=(JSON, OCTETS),
    ),
)
