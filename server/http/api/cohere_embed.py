"""Cohere's embeddings, of both versions of its interface."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, NotRequired

import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from typing_extensions import TypedDict

from server.errors import InvalidField
from server.http.api.cohere_schemas import ApiVersion, CohereErrorReply, render_error
from server.http.api.fields import MAX_LIST, MAX_OPTIONS, ModelName, Options, Texts
from server.http.api.messages import read_content
from server.http.api.vectors import Vectors, encode_rows
from server.http.body import parse_body
from server.http.call import Call, Reply
from server.http.endpoint import TextJob, run_job
from server.http.replies import INLINE_NUMBERS, write_reply
from server.http.route import Route
from server.http.state import ServedModel, ServerState
from server.tasks import embed
from server.tasks.vector_types import OutputType
from server.text.prompts import choose_prompt
from server.text.work import Truncation

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
ARRAY_TYPES: Mapping[EmbeddingType, OutputType] = {
    "float": "float",
    "base64": "float",
    "int8": "int8",
    "uint8": "uint8",
    "binary": "binary",
    "ubinary": "ubinary",
}
Floats = list[list[float]]
Bytes = list[list[int]]
FLOATS_ONLY: tuple[EmbeddingType, ...] = ("float",)
TRUNCATIONS: Mapping[str, Truncation] = {"NONE": "error", "START": "left", "END": "right"}
"""The end that is cut off."""


class EmbedFields(BaseModel):
    """What both versions have."""

    model_config = ConfigDict(
        extra="ignore", protected_namespaces=(), json_schema_extra={"examples": [{"texts": ["Hello, world"]}]}
    )

    model: ModelName | None = Field(None, description="Needed only where several models embed.")
    input_type: Literal["search_document", "search_query", "classification", "clustering"] | None = Field(
        None, description="The model's prompt for such texts; its default prompt if absent."
    )
    embedding_types: Annotated[list[EmbeddingType], Field(fail_fast=True, max_length=MAX_OPTIONS)] | None = Field(
        None, description="An object with an entry for each; version 1 gives a list of floats if absent."
    )
    truncate: Literal["NONE", "START", "END"] = Field(
        "END", description="The end of longer texts that is cut off; NONE refuses them."
    )
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="Longer texts count as too long; what the model takes if absent or more."
    )
    output_dimension: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="Keep so many leading dimensions."
    )


class EmbedRequest(EmbedFields):
    """Body of `POST /v1/embed`."""

    texts: Texts


class EmbedRequestV2(EmbedFields):
    """Body of `POST /v2/embed`."""

    texts: Texts | None = None
    inputs: Annotated[list[Options], Field(fail_fast=True, max_length=MAX_LIST)] | None = Field(
        None,
        description='a list of {"content": [{"type": "text", "text": ...}]}, in place of texts; several parts of one '
        "are joined by line breaks",
    )


class BilledUnits(TypedDict):
    input_tokens: int


class Meta(TypedDict):
    api_version: ApiVersion
    billed_units: BilledUnits


class EmbeddingsByType(TypedDict):
    float: NotRequired[Floats]
    int8: NotRequired[Bytes]
    uint8: NotRequired[Bytes]
    binary: NotRequired[Bytes]
    ubinary: NotRequired[Bytes]
    base64: NotRequired[list[str]]


class EmbedReplyV2(TypedDict):
    """`texts`: as they came."""

    id: str
    embeddings: EmbeddingsByType
    texts: list[str]
    meta: Meta


class EmbedReply(TypedDict):
    """Of version 1: a list of vectors where no types were asked for."""

    response_type: Literal["embeddings_floats", "embeddings_by_type"]
    id: str
    embeddings: Floats | EmbeddingsByType
    texts: list[str]
    meta: Meta


async def embed_v1(call: Call, state: ServerState) -> Reply:
    asked = parse_body(EmbedRequest, call.take_body())
    return await embed_texts(call, state, asked, asked.texts, "texts")


async def embed_v2(call: Call, state: ServerState) -> Reply:
    asked = parse_body(EmbedRequestV2, call.take_body())
    asked.embedding_types = asked.embedding_types or ["float"]
    if (asked.texts is None) == (asked.inputs is None):
        raise InvalidField("texts or inputs must be there, and only one of them; images are not supported", "texts")
    if asked.texts is not None:
        return await embed_texts(call, state, asked, asked.texts, "texts")
    inputs = enumerate(asked.inputs or ())
    texts = [read_content(item.get("content"), f"inputs[{index}].content") for index, item in inputs]
    return await embed_texts(call, state, asked, texts, "inputs")


async def embed_texts(call: Call, state: ServerState, asked: EmbedFields, texts: list[str], field: str) -> Reply:
    model = state.pick_model(asked.model, embed.TASK)
    call.model = model.name
    kinds = list(dict.fromkeys(asked.embedding_types or ()))
    job = TextJob(
        embed.TASK,
        texts,
        field,
        build_params(asked, model, kinds),
        prompt=choose_prompt(model.info, input_type=asked.input_type),
        truncation=TRUNCATIONS[asked.truncate],
        max_input_tokens=asked.max_tokens,
    )
    arrays = await run_job(call, model, job)
    rows = {kind: arrays[embed.name_array(ARRAY_TYPES[kind])].values for kind in kinds or FLOATS_ONLY}
    head = {} if isinstance(asked, EmbedRequestV2) else {"response_type": name_response(kinds)}
    rest = {"texts": texts, "meta": describe_call(call, "2" if isinstance(asked, EmbedRequestV2) else "1")}
    write = partial(write_embeddings, head | {"id": call.request_id.decode()}, rows, rest, is_list=not kinds)
    return await write_reply(write, sum(each.size for each in rows.values()), INLINE_NUMBERS, model)


def build_params(asked: EmbedFields, model: ServedModel, kinds: list[EmbeddingType]) -> embed.EmbedParams:
    """Raises InvalidField."""
    types = tuple(dict.fromkeys(ARRAY_TYPES[kind] for kind in kinds)) or ("float",)
    return embed.build_params(
        model.info, dimensions=asked.output_dimension, types=types, dimensions_field="output_dimension"
    )


def name_response(kinds: list[EmbeddingType]) -> str:
    return "embeddings_by_type" if kinds else "embeddings_floats"


def describe_call(call: Call, version: str) -> Meta:
    return {"api_version": {"version": version}, "billed_units": {"input_tokens": call.times.num_tokens}}


def write_embeddings(
    head: Mapping[str, str], rows: Mapping[EmbeddingType, Vectors], rest: Mapping[str, Any], *, is_list: bool
) -> bytes:
    by_type = {kind: encode_rows(values, is_base64=kind == "base64") for kind, values in rows.items()}
    return orjson.dumps({**head, "embeddings": by_type["float"] if is_list else by_type, **rest})


ROUTES = (
    Route(
        "POST",
        "/v1/embed",
        embed_v1,
        render_error,
        "Embed texts",
        "cohere",
        schema=EmbedRequest.model_json_schema(),
        reply=EmbedReply,
        error_reply=CohereErrorReply,
        deadline="default",
    ),
    Route(
        "POST",
        "/v2/embed",
        embed_v2,
        render_error,
        "Embed texts, in one or several types",
        "cohere",
        schema=EmbedRequestV2.model_json_schema(),
        reply=EmbedReplyV2,
        error_reply=CohereErrorReply,
        deadline="default",
    ),
)
