"""OpenAI's embeddings and models, as its clients speak them."""

from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from server.http.body import parse_body
from server.http.endpoint import LeanRoute, answer_json, describe_request, find_state, serve_call
from server.http.pipeline import HttpCall, run_inputs
from server.http.state import ServedModel, ServerState
from server.tasks.scores import Rows, check_dimensions, encode_base64, shorten_embeddings
from server.text.tokenizer import Input

router = APIRouter(route_class=LeanRoute, tags=["openai"])

Texts = Annotated[list[str], Field(fail_fast=True)]
TokenIds = Annotated[list[StrictInt], Field(fail_fast=True)]


class EmbeddingsRequest(BaseModel):
    """Body of `POST /v1/embeddings`."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: str
    input: Annotated[
        str | Texts | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)],
        Field(
            union_mode="left_to_right",
            description="a text, a list of texts, a list of token ids, or a list of lists of token ids",
        ),
    ]
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="`float` if absent; `base64` holds little-endian float32 and is faster."
    )
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="Keep so many leading dimensions, scaled to length 1 again."
    )
    user: str | None = None


@router.post(
    "/v1/embeddings",
    summary="Embed texts or token ids",
    openapi_extra=describe_request(EmbeddingsRequest.model_json_schema()),
)
@router.post("/embeddings", include_in_schema=False)
async def create_embeddings(request: Request) -> Response:
    return await serve_call(request, route="/v1/embeddings", protocol="openai", work=embed)


async def embed(call: HttpCall, state: ServerState, body: bytes) -> bytes:
    """One call from body to body."""
    asked = parse_body(EmbeddingsRequest, body)
    model = state.find_model(asked.model)
    call.model = model.name
    model.check_task("embed")
    check_dimensions(asked.dimensions, model.info)
    answer = await run_inputs(
        call, model, list_inputs(asked.input), field="input", truncation=model.config.limits.truncation
    )
    rows = shorten_embeddings(answer.values, asked.dimensions)
    return format_embeddings(rows, model.name, call.times.num_tokens, is_base64=asked.encoding_format == "base64")


def list_inputs(given: str | list[Any]) -> list[Input]:
    """One entry per sequence."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        return [given]
    return given


def format_embeddings(rows: Rows, model: str, num_tokens: int, *, is_base64: bool) -> bytes:
    values: list[Any] = [encode_base64(row) for row in rows] if is_base64 else list(np.ascontiguousarray(rows))
    data = [{"object": "embedding", "index": index, "embedding": value} for index, value in enumerate(values)]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    content = {"object": "list", "data": data, "model": model, "usage": usage}
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


@router.get("/v1/models", summary="List the models")
async def list_models(request: Request) -> Response:
    models = find_state(request).models.values()
    return answer_json({"object": "list", "data": [describe_model(model) for model in models]})


@router.get("/v1/models/{name:path}", summary="One model")
async def get_model(request: Request) -> Response:
    return answer_json(describe_model(find_state(request).find_model(request.path_params["name"])))


def describe_model(model: ServedModel) -> dict[str, Any]:
    """OpenAI's fields, then those benchmark tools look for."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_s,
        "owned_by": "padless",
        "root": model.name,
        "max_model_len": model.tokenizer.max_input_tokens,
        "task": model.info.task,
    }
