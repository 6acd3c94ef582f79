"""Jina's multi-vector embeddings: of each text a vector for each of its tokens, for late interaction."""

from functools import partial
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from typing_extensions import TypedDict

from server.errors import InvalidField
from server.http.api.fields import Label, ModelName, Priority, TextsOrIds, list_inputs
from server.http.api.openai_errors import render_error
from server.http.api.openai_schemas import EmbeddingUsage, ErrorReply, count_usage
from server.http.api.vectors import encode_rows
from server.http.body import parse_body
from server.http.call import Call, Reply
from server.http.endpoint import run_job
from server.http.replies import INLINE_NUMBERS, write_reply
from server.http.route import Route
from server.http.state import ServerState
from server.http.token_vectors import bound_numbers, build_job
from server.tasks import multi_vector
from server.text.late_interaction import Side
from server.wire.job import Ragged


class MultiVectorRequest(BaseModel):
    """Body of `POST /v1/multi-vector`."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: ModelName | None = Field(None, description="Needed only where several such models are served.")
    input: TextsOrIds
    input_type: Side = Field("document", description="Which side of a search the texts are on.")
    embedding_type: Literal["float"] | None = None
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = Field(None, description="As many as the model has.")
    priority: Priority = None
    user: Label | None = None


class TokenVectors(TypedDict):
    object: Literal["embeddings"]
    index: int
    embeddings: list[list[float]]


class MultiVectorReply(TypedDict):
    object: Literal["list"]
    model: str
    data: list[TokenVectors]
    usage: EmbeddingUsage


async def embed_for_interaction(call: Call, state: ServerState) -> Reply:
    asked = parse_body(MultiVectorRequest, call.take_body())
    model = state.pick_model(asked.model, multi_vector.TASK)
    call.model = model.name
    if asked.dimensions not in (None, model.info.output_dim):
        raise InvalidField(
            f"dimensions is {asked.dimensions}; this model's vectors have {model.info.output_dim}. Leave it out",
            param="dimensions",
        )
    inputs = list_inputs(asked.input)
    job = build_job(model, inputs, "input", side=asked.input_type, priority=asked.priority or 0)
    rows = (await run_job(call, model, bound_numbers(job, model)))["token_embeddings"]
    num_tokens = call.times.num_tokens
    head = {
        "object": "list",
        "model": model.full_name,
        "usage": count_usage(num_tokens),
    }
    return await write_reply(partial(write_answer, head, rows), rows.values.size, INLINE_NUMBERS, model)


def write_answer(head: dict[str, Any], rows: Ragged) -> bytes:
    data = [
        {"object": "embeddings", "index": index, "embeddings": encode_rows(rows.row(index))}
        for index in range(len(rows))
    ]
    return orjson.dumps({**head, "data": data})


ROUTES = (
    Route(
        *("POST", "/v1/multi-vector", embed_for_interaction, render_error),
        "Embed every token of queries or documents",
        "jina",
        schema=MultiVectorRequest.model_json_schema(),
        reply=MultiVectorReply,
        error_reply=ErrorReply,
        deadline="default",
    ),
)
