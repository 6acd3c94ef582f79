"""vLLM's pooling: whatever a model makes of its rows, as numbers: of an input, or of each of its tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import time
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import Field, StrictBool, StrictInt
from typing_extensions import TypedDict

from server.errors import InvalidField
from server.http.api.fields import Label, ModelName, TextsOrIds, list_inputs
from server.http.api.openai_errors import render_error
from server.http.api.openai_schemas import EmbeddingUsage, ErrorReply, count_usage
from server.http.api.pooling_fields import PoolingFields
from server.http.api.vectors import Vectors, encode_base64, encode_numbers, encode_rows
from server.http.body import parse_body
from server.http.call import Call, Reply
from server.http.endpoint import TextJob, run_job
from server.http.replies import INLINE_NUMBERS, write_reply
from server.http.route import Route
from server.http.state import ServedModel, ServerState
from server.http.token_vectors import bound_numbers, build_job
from server.tasks import classify, embed, token_classify, token_embed
from server.tasks.task import Task
from server.tasks.vector_types import WRITERS, scale_rows
from server.text.late_interaction import Side
from server.text.prompts import find_default
from server.wire.job import Ragged

Rows = npt.NDArray[np.float32]
Activation = Callable[[Rows], Rows]
Convert = Callable[[Rows], Vectors]
TASKS: Mapping[str, Task] = {
    task.name: task for task in (embed.TASK, classify.TASK, token_embed.TASK, token_classify.TASK)
}
"""vLLM has the same names. Without one it is the first that the model can do."""
NAMES = ", ".join(TASKS)


class PoolingRequest(PoolingFields):
    """Body of `POST /pooling`."""

    model: ModelName | None = Field(None, description="Needed only where several models could answer.")
    input: TextsOrIds
    task: Label | None = Field(
        None,
        description=f"{NAMES}; the first of these that the model can do if absent.",
        json_schema_extra={"enum": [*TASKS, None]},
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="`base64`: the bytes of all numbers of an input, little-endian."
    )
    embed_dtype: Literal["float32", "float16"] = "float32"
    endianness: Literal["native", "little"] | None = Field(None, description="Of base64, which is always little.")
    use_activation: StrictBool | None = Field(
        None, description="false: logits, and vectors as they are; else probabilities, and vectors of length 1."
    )
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = Field(None, description="Of `embed` only.")
    input_type: Side | None = Field(None, description="Of models for late interaction; `document` if absent.")
    add_special_tokens: StrictBool = True


class Pooled(TypedDict):
    """`data` is base64 where that was asked for."""

    index: int
    object: Literal["pooling"]
    data: list[list[float]] | list[float] | str


class PoolingReply(TypedDict):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Pooled]
    usage: EmbeddingUsage


async def pool_inputs(call: Call, state: ServerState) -> Reply:
    asked = parse_body(PoolingRequest, call.take_body())
    call.adopt_request_id(asked.request_id)
    model, task = pick_task(state, asked)
    call.model = model.name
    check_fields(asked, model, task)
    (rows,) = (await run_job(call, model, describe_job(asked, model, task))).values()
    num_tokens = call.times.num_tokens
    head = {
        "id": f"pool-{call.request_id.decode()}",
        "object": "list",
        "created": int(time()),
        "model": model.full_name,
        "usage": count_usage(num_tokens),
    }
    activate = as_they_are if asked.use_activation is False else find_activation(model, task)
    convert = WRITERS["float16" if asked.embed_dtype == "float16" else "float"]
    write = partial(write_answer, head, rows, activate, convert, is_base64=asked.encoding_format == "base64")
    return await write_reply(write, rows.values.size, INLINE_NUMBERS, model)


def pick_task(state: ServerState, asked: PoolingRequest) -> tuple[ServedModel, Task]:
    """Raises UnknownModel, InvalidField, WrongTask."""
    if asked.task is None:
        model = state.pick_model(asked.model)
        task = next((task for task in TASKS.values() if task.can_use(model.info)), embed.TASK)
        return model.pick_head(task), task
    if asked.task not in TASKS:
        raise InvalidField(f"task {asked.task[:50]!r} is not known; tasks are {NAMES}", param="task")
    return state.pick_model(asked.model, TASKS[asked.task]), TASKS[asked.task]


def check_fields(asked: PoolingRequest, model: ServedModel, task: Task) -> None:
    """Raises InvalidField for what the task or the model has not."""
    if asked.dimensions is not None and task is not embed.TASK:
        raise InvalidField(
            f"dimensions is for the task {embed.TASK.name}, and this is {task.name}; leave it out", param="dimensions"
        )
    if asked.input_type is not None and model.info.late_interaction is None:
        raise InvalidField("input_type is for models for late interaction; leave it out", param="input_type")
    if task is token_embed.TASK:
        embed.check_scaling(asked.use_activation, model.info, "use_activation")


def describe_job(asked: PoolingRequest, model: ServedModel, task: Task) -> TextJob:
    job = describe_whole(asked, model, task)
    if task in (token_embed.TASK, token_classify.TASK):
        job = bound_numbers(job, model)
    if asked.truncate_prompt_tokens is None:
        return job
    truncation, most = asked.limit_inputs(model)
    limits = [limit for limit in (most, job.max_input_tokens) if limit is not None]
    return replace(job, truncation=truncation, max_input_tokens=min(limits, default=None))


def describe_whole(asked: PoolingRequest, model: ServedModel, task: Task) -> TextJob:
    """Before what the request says of long inputs."""
    inputs, priority = list_inputs(asked.input), asked.priority or 0
    if task is token_embed.TASK:
        job = build_job(model, inputs, "input", side=asked.input_type or "document", priority=priority)
        return replace(job, add_special_tokens=asked.add_special_tokens)
    return TextJob(
        *(task, inputs, "input", build_params(asked, model, task)),
        prompt=find_default(model.info),
        truncation=model.config.limits.truncation,
        add_special_tokens=asked.add_special_tokens,
        priority=priority,
    )


def build_params(asked: PoolingRequest, model: ServedModel, task: Task) -> Any:
    """Raises InvalidField."""
    if task is not embed.TASK:
        return task.params()
    return embed.build_params(
        model.info,
        dimensions=asked.dimensions,
        normalize=asked.use_activation,
        normalize_field="use_activation",
    )


def find_activation(model: ServedModel, task: Task) -> Activation:
    """As vLLM's poolers: an input's vector has been scaled where that is wanted."""
    if task is classify.TASK:
        return partial(classify.compute_scores, info=model.info)
    if task is token_classify.TASK:
        return classify.compute_sigmoid if model.info.output_dim == 1 else classify.compute_softmax
    return scale_rows if task is token_embed.TASK and not model.info.normalize else as_they_are


def as_they_are(rows: Rows) -> Rows:
    return rows


def write_answer(
    head: dict[str, Any], rows: Ragged, activate: Activation, convert: Convert, *, is_base64: bool
) -> bytes:
    values = convert(activate(rows.values))
    parts: Sequence[Vectors] = list(values) if rows.row_splits is None else np.split(values, rows.row_splits[1:-1])
    data = [
        {"index": index, "object": "pooling", "data": encode_base64(part) if is_base64 else encode_part(part)}
        for index, part in enumerate(parts)
    ]
    return orjson.dumps({**head, "data": data})


def encode_part(part: Vectors) -> Any:
    return encode_numbers(part) if part.ndim == 1 else encode_rows(part)


ROUTES = (
    Route(
        *("POST", "/pooling", pool_inputs, render_error, "Pool texts or token ids", "vllm"),
        schema=PoolingRequest.model_json_schema(),
        reply=PoolingReply,
        error_reply=ErrorReply,
        deadline="default",
    ),
)
