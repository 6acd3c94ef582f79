"""The Open Inference Protocol v2 over gRPC, `inference.GRPCInferenceService`: what KServe and Triton's clients call."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from server.errors import BodyTooLarge, InvalidBody, InvalidField
from server.http.api import oip_messages as proto
from server.http.api.health import find_problems
from server.http.api.oip_model import (
    EXTENSIONS,
    PLATFORM,
    VERSION,
    InferRequest,
    configure_model,
    describe_model,
    find_model_version,
    infer_rows,
    is_ready,
    list_models,
    refuse_loading,
)
from server.http.api.oip_outputs import Rows
from server.http.api.oip_stats import Duration, ModelStats, count_models
from server.http.api.oip_tensors import Given, decode
from server.http.body import check_object
from server.http.call import Call, Reply
from server.http.docs import find_server_version
from server.http.protobuf import MessageReader, Numbers, write
from server.http.replies import INLINE_NUMBERS, write_reply
from server.http.rpc import list_questions, list_rpcs, parse_message, parse_question, reply_message
from server.http.state import ServerState

SERVICE = "inference.GRPCInferenceService"
CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
}
"""Where the numbers of an input are, by its datatype."""
MAX_ID_ITEMS = 1000
"""Of a message that was refused, what is read to find its id."""
DATA_TYPES: Mapping[str, int] = {"TYPE_INT64": 9, "TYPE_FP32": 11, "TYPE_STRING": 13}
"""Triton's numbers."""


async def tell_live(call: Call, state: ServerState) -> Reply:
    return reply_message(proto.Truth(True))


async def tell_server_ready(call: Call, state: ServerState) -> Reply:
    return reply_message(proto.Truth(not find_problems(state)))


async def tell_model_ready(call: Call, state: ServerState) -> Reply:
    asked = await parse_question(call, state, proto.NamedModel)
    return reply_message(proto.Truth(is_ready(find_model_version(asked.name, asked.version, state), state)))


async def tell_server(call: Call, state: ServerState) -> Reply:
    return reply_message(proto.ServerMetadata(PLATFORM, find_server_version(), list(EXTENSIONS)))


async def tell_model(call: Call, state: ServerState) -> Reply:
    asked = await parse_question(call, state, proto.NamedModel)
    facts = describe_model(find_model_version(asked.name, asked.version, state))
    inputs, outputs = (
        [proto.TensorMetadata(each["name"], each["datatype"], np.array(each["shape"])) for each in tensors]
        for tensors in (facts["inputs"], facts["outputs"])
    )
    return reply_message(proto.ModelMetadata(facts["name"], facts["versions"], facts["platform"], inputs, outputs))


async def tell_config(call: Call, state: ServerState) -> Reply:
    asked = await parse_question(call, state, proto.NamedModel)
    config = configure_model(find_model_version(asked.name, asked.version, state))
    inputs = [
        proto.TensorConfig(each["name"], DATA_TYPES[each["data_type"]], np.array(each["dims"]), each["optional"])
        for each in config["input"]
    ]
    outputs = [
        proto.OutputConfig(each["name"], DATA_TYPES[each["data_type"]], np.array(each["dims"]))
        for each in config["output"]
    ]
    names = (config["name"], config["platform"], config["max_batch_size"])
    return reply_message(proto.ModelConfigResponse(proto.ModelConfig(*names, inputs, outputs, config["backend"])))


async def tell_statistics(call: Call, state: ServerState) -> Reply:
    """Of all models where none is named."""
    asked = await parse_question(call, state, proto.NamedModel)
    names = [find_model_version(asked.name, asked.version, state).name] if asked.name else list(state.models)
    stats = [write_stats(found) for found in await count_models(names, state.metrics)]
    return reply_message(proto.ModelStatisticsResponse(stats))


def write_stats(found: ModelStats) -> proto.ModelStatistics:
    def write(duration: Duration) -> proto.Duration:
        return proto.Duration(duration["count"], duration["ns"])

    times = found["inference_stats"]
    stats = proto.InferStatistics(
        *(write(times["success"]), write(times["fail"]), write(times["queue"])),
        *(write(times["compute_input"]), write(times["compute_infer"]), write(times["compute_output"])),
        *(write(times["cache_hit"]), write(times["cache_miss"])),
    )
    counts = (found["inference_count"], found["execution_count"])
    return proto.ModelStatistics(found["name"], found["version"], *counts, stats)


async def tell_repository(call: Call, state: ServerState) -> Reply:
    asked = await parse_question(call, state, proto.RepositoryIndexRequest)
    models = [proto.ModelIndex(**found) for found in list_models(state, only_ready=asked.ready)]
    return reply_message(proto.RepositoryIndexResponse(models))


async def refuse_load(call: Call, state: ServerState) -> Reply:
    raise refuse_loading()


async def infer_message(call: Call, state: ServerState) -> Reply:
    return await infer(call, state, is_streamed=False)


async def infer_streamed(call: Call, state: ServerState) -> Reply:
    """One of a stream, as Triton's clients send them to models with several answers, and to others."""
    return await infer(call, state, is_streamed=True)


def tell_error(request: bytes, message: str) -> bytes:
    """Instead of the answer to one of a stream."""
    try:
        request_id = MessageReader(MAX_ID_ITEMS).read(proto.RequestId, request).id
    except (InvalidBody, BodyTooLarge):
        request_id = ""
    return write(proto.ModelStreamInferResponse(message, proto.ModelInferResponse(id=request_id)))


async def infer(call: Call, state: ServerState, *, is_streamed: bool) -> Reply:
    """Outputs come as inputs did: raw, or each in its tensor."""
    message = parse_message(call, state, proto.ModelInferRequest)
    model = find_model_version(message.model_name, message.model_version, state)
    call.model = model.name
    asked, parts = read_request(message)
    rows = await infer_rows(call, model, asked, parts)
    answer = proto.ModelInferResponse(model.full_name, VERSION, message.id)
    fill = partial(write_answer, answer, rows, is_raw=bool(message.raw_input_contents), is_streamed=is_streamed)
    return await write_reply(fill, sum(values.size for values in rows.values()), INLINE_NUMBERS, model)


def read_request(message: proto.ModelInferRequest) -> tuple[InferRequest, Sequence[Given]]:
    """As the body of REST has it, and each input's values where they are bytes or numbers. Raises InvalidField."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidField(
            f"raw_input_contents must have one entry for each of the {len(message.inputs)} inputs, or none; it has "
            f"{len(raw)}",
            param="raw_input_contents",
        )
    asked = check_object(
        InferRequest,
        {
            "id": message.id or None,
            "parameters": read_parameters(message.parameters),
            "inputs": [read_tensor(tensor, is_raw=bool(raw)) for tensor in message.inputs],
            "outputs": [{"name": wish.name, "parameters": read_parameters(wish.parameters)} for wish in message.outputs]
            or None,
        },
    )
    return asked, raw or [find_numbers(tensor) for tensor in message.inputs]


def read_tensor(tensor: proto.Tensor, *, is_raw: bool) -> dict[str, Any]:
    """With its texts, if it has any. Raises InvalidField."""
    if is_raw and tensor.contents is not None:
        raise InvalidField(
            f"inputs: {tensor.name[:100]} must have either contents or an entry of raw_input_contents", param="inputs"
        )
    values = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape.tolist()}
    if is_raw or tensor.datatype != "BYTES":
        return values
    given = tensor.contents.bytes_contents if tensor.contents else []
    return {**values, "data": [decode(memoryview(each)) for each in given]}


def find_numbers(tensor: proto.Tensor) -> Numbers | None:
    """As they lie in the message. None where it holds texts."""
    kind = CONTENTS.get(tensor.datatype)
    numbers: Numbers | None = getattr(tensor.contents or proto.TensorContents(), kind) if kind else None
    return numbers


def read_parameters(entries: Sequence[proto.NamedParameter]) -> dict[str, Any]:
    """Those that have a value."""
    found: dict[str, Any] = {}
    for entry in entries:
        value = entry.value or proto.Parameter()
        said = (value.bool_param, value.int64_param, value.string_param, value.double_param, value.uint64_param)
        found.update((entry.key, each) for each in said if each is not None)
    return found


def write_answer(
    answer: proto.ModelInferResponse, rows: Mapping[str, Rows], *, is_raw: bool, is_streamed: bool
) -> Reply:
    answer.outputs = [proto.Tensor(name, "FP32", np.array(values.shape)) for name, values in rows.items()]
    if is_raw:
        answer.raw_output_contents = [values.astype("<f4", copy=False).tobytes() for values in rows.values()]
    else:
        for tensor, values in zip(answer.outputs, rows.values(), strict=True):
            tensor.contents = proto.TensorContents(fp32_contents=values.reshape(-1))
    return reply_message(proto.ModelStreamInferResponse(infer_response=answer) if is_streamed else answer)


RPCS = (
    *list_questions(SERVICE, {"ServerLive": tell_live, "ServerReady": tell_server_ready}, is_open=True),
    *list_questions(
        SERVICE,
        {
            "ModelReady": tell_model_ready,
            "ServerMetadata": tell_server,
            "ModelMetadata": tell_model,
            "ModelConfig": tell_config,
            "ModelStatistics": tell_statistics,
            "RepositoryIndex": tell_repository,
            "RepositoryModelLoad": refuse_load,
            "RepositoryModelUnload": refuse_load,
        },
    ),
    *list_rpcs(SERVICE, {"ModelInfer": infer_message}),
    *list_rpcs(SERVICE, {"ModelStreamInfer": infer_streamed}, "each", tell_error=tell_error),
)
