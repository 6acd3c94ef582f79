"""OpenAI's embeddings, with the fields that clients of vLLM and Voyage send along."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from server.errors import InvalidField
from server.http.api.fields import Label, ModelName, TextsOrIds, list_inputs
from server.http.api.openai_errors import render_error
from server.http.api.openai_schemas import EmbeddingsReply, ErrorReply, count_usage
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

MAX_PROMPT_CHARS = 4096
"""It is read once for each text."""
TypeName = Literal["float", "float32", "float16", "int8", "uint8", "binary", "ubinary"]
TYPES: Mapping[TypeName, OutputType] = {
    "float": "float",
    "float32": "float",
    "float16": "float16",
    "int8": "int8",
    "uint8": "uint8",
    "binary": "binary",
    "ubinary": "ubinary",
}


class EmbeddingsRequest(BaseModel):
    """Body of `POST /v1/embeddings`."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: ModelName | None = Field(None, description="Needed only where several models embed.")
    input: TextsOrIds
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="`float` if absent: numbers; `base64`: their bytes, little-endian, which is faster."
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
    output_dtype: TypeName | None = Field(
        None, description="What the numbers are: `float` if absent; of `binary` and `ubinary` each holds eight."
    )
    embed_dtype: TypeName | None = Field(None, description="vLLM's name of `output_dtype`.")
    endianness: Literal["native", "little"] | None = Field(None, description="Of base64, which is always little.")
    truncate_prompt_tokens: Annotated[StrictInt, Field(ge=-1, lt=2**31)] | None = Field(
        None, description="Cut longer inputs to so many tokens; -1: to as many as the model takes."
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="The end that is then cut off; what the server's configuration says if absent, or right."
    )
    add_special_tokens: StrictBool = Field(True, description="As the model wants them around a text.")
    priority: Annotated[StrictInt, Field(ge=-(2**31), lt=2**31)] | None = Field(
        None, description="Lower is earlier. Where the server allows it."
    )
    request_id: Label | None = Field(None, description="As the header x-request-id, which goes before.")
    user: Label | None = None


def check_types(asked: EmbeddingsRequest) -> OutputType:
    """Raises InvalidField where the two names of the field contradict each other."""
    given = {TYPES[each] for each in (asked.output_dtype, asked.embed_dtype) if each is not None}
    if len(given) > 1:
        raise InvalidField("output_dtype and embed_dtype are one choice; leave one out", param="embed_dtype")
    return given.pop() if given else "float"


def limit_input(
    num_tokens: int | None, side: Literal["left", "right"] | None, model: ServedModel
) -> tuple[Truncation, int | None]:
    """What happens to inputs of more than so many tokens; None: than the model takes. Raises InvalidField."""
    configured = model.config.limits.truncation
    if num_tokens is None:
        return configured, None
    side = side or ("right" if configured == "error" else configured)
    most = model.tokenizer.max_input_tokens
    if num_tokens == 0 or num_tokens > most:
        raise InvalidField(
            f"truncate_prompt_tokens is {num_tokens}; it must be -1, for all that the model takes, or from 1 to {most}",
            param="truncate_prompt_tokens",
        )
    return side, None if num_tokens == -1 else num_tokens


async def create_embeddings(call: Call, state: ServerState) -> Reply:
    asked = parse_body(EmbeddingsRequest, call.take_body())
    call.adopt_request_id(asked.request_id)
    model = state.pick_model(asked.model, embed.TASK)
    call.model = model.name
    kind = check_types(asked)
    params = embed.build_params(model.info, dimensions=asked.dimensions, types=(kind,))
    truncation, max_input_tokens = limit_input(asked.truncate_prompt_tokens, asked.truncation_side, model)
    job = TextJob(
        embed.TASK,
        list_inputs(asked.input),
        "input",
        params,
        prompt=choose_prompt(model.info, text=asked.prompt, name=asked.prompt_name, input_type=asked.input_type),
        truncation=truncation,
        add_special_tokens=asked.add_special_tokens,
        max_input_tokens=max_input_tokens,
        priority=asked.priority or 0,
    )
    rows = (await run_job(call, model, job))[embed.name_array(kind)].values
    is_base64 = asked.encoding_format == "base64"
    write = partial(format_embeddings, rows, model.name, call.times.num_tokens, is_base64=is_base64)
    return await write_reply(write, rows.size, INLINE_NUMBERS, model)


def format_embeddings(rows: Vectors, model: str, num_tokens: int, *, is_base64: bool) -> bytes:
    values = encode_rows(rows, is_base64=is_base64)
    data = [{"object": "embedding", "index": index, "embedding": value} for index, value in enumerate(values)]
    usage = count_usage(num_tokens)
    content = {"object": "list", "data": data, "model": model, "usage": usage}
    return orjson.dumps(content)


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
