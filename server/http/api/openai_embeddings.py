"""OpenAI's embeddings."""

import binascii
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from server.http.api.fields import Label, ModelName, Texts, TokenIds, TokenLists
from server.http.api.openai_errors import render_error
from server.http.api.openai_schemas import EmbeddingsReply, ErrorReply
from server.http.body import parse_body
from server.http.call import Call, Reply
from server.http.endpoint import TextJob, run_job
from server.http.route import Route
from server.http.state import ServerState
from server.tasks import embed
from server.text.inputs import Input
from server.text.prompts import choose_prompt

MAX_PROMPT_CHARS = 4096
"""It is read once for each text."""
INLINE_VALUES = 65_536
"""So many numbers are written on the event loop's thread, in 4 to 8 ms; 2,048 vectors of 1,024 take 150."""


class EmbeddingsRequest(BaseModel):
    """Body of `POST /v1/embeddings`."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: ModelName | None = Field(None, description="Needed only where several models embed.")
    input: Annotated[
        str | Texts | TokenIds | TokenLists,
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
    prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)] | None = Field(
        None, description="Stands before each text; the model's default prompt if absent, none if empty."
    )
    prompt_name: Label | None = Field(None, description="One of the model's own prompts, in place of the default.")
    input_type: Label | None = Field(
        None, description="query, document, passage, search_query, ...: the model's prompt for such texts."
    )
    user: Label | None = None


async def create_embeddings(call: Call, state: ServerState) -> Reply:
    asked = parse_body(EmbeddingsRequest, call.take_body())
    model = state.pick_model(asked.model, embed.TASK)
    call.model = model.name
    embed.check_dimensions(asked.dimensions, model.info)
    params = embed.EmbedParams(asked.dimensions)
    prompt = choose_prompt(model.info, text=asked.prompt, name=asked.prompt_name, input_type=asked.input_type)

    truncation = model.config.limits.truncation
    job = TextJob(embed.TASK, list_inputs(asked.input), "input", params, prompt=prompt, truncation=truncation)
    rows = (await run_job(call, model, job))["embeddings"].values
    is_base64 = asked.encoding_format == "base64"
    write = partial(format_embeddings, rows, model.name, call.times.num_tokens, is_base64=is_base64)
    return Reply(write() if rows.size <= INLINE_VALUES else await model.tokenizer.run(write))


def list_inputs(given: str | list[Any]) -> list[Input]:
    """One entry per sequence."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        return [given]
    return given


def format_embeddings(rows: npt.NDArray[np.float32], model: str, num_tokens: int, *, is_base64: bool) -> bytes:
    """Row by row: between two of them others have their turn at the GIL."""
    encode = encode_base64 if is_base64 else encode_floats
    values = [encode(row) for row in np.ascontiguousarray(rows)]
    data = [{"object": "embedding", "index": index, "embedding": value} for index, value in enumerate(values)]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    content = {"object": "list", "data": data, "model": model, "usage": usage}
    return orjson.dumps(content)


def encode_floats(row: npt.NDArray[np.float32]) -> orjson.Fragment:
    return orjson.Fragment(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY))


def encode_base64(row: npt.NDArray[np.float32]) -> str:
    """Little-endian float32, what OpenAI's clients decode."""
    return binascii.b2a_base64(row.astype("<f4", copy=False).tobytes(), newline=False).decode("ascii")


ROUTE = Route(
    "POST",
    "/v1/embeddings",
    create_embeddings,
    render_error,
    "Embed texts or token ids",
    "openai",
    schema=EmbeddingsRequest.model_json_schema(),
    reply=EmbeddingsReply,
    error_reply=ErrorReply,
    deadline="default",
)
ROUTES = (ROUTE, replace(ROUTE, path="/embeddings", is_listed=False, label=ROUTE.path))
