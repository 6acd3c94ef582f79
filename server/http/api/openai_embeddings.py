"""OpenAI's embeddings, with the fields that clients of vLLM and Voyage send along."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import orjson
from pydantic import Field, StrictBool, StrictInt

from server.errors import InvalidField
from server.http.api.fields import Label, ModelName, TextsOrIds, list_inputs
from server.http.api.openai_errors import render_error
from server.http.api.openai_schemas import EmbeddingsReply, ErrorReply, count_usage
from server.http.api.pooling_fields import PoolingFields
from server.http.api.vectors import Vectors, encode_rows
from server.http.body import parse_body
from server.http.call import Call, Reply
from server.http.endpoint import TextJob, run_job
from server.http.replies import INLINE_NUMBERS, write_reply
from server.http.route import Route
from server.http.state import ServerState
from server.tasks import embed
from server.tasks.vector_types import OutputType
from server.text.prompts import choose_prompt

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


class EmbeddingsRequest(PoolingFields):
    """Body of `POST /v1/embeddings`."""

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
    task: Label | None = Field(
        None, description="retrieval.query, retrieval.passage, ...: the model's adapter for it, and its prompt."
    )
    output_dtype: TypeName | None = Field(
        None, description="What the numbers are: `float` if absent; of `binary` and `ubinary` each holds eight."
    )
    embed_dtype: TypeName | None = Field(None, description="vLLM's name of `output_dtype`.")
    endianness: Literal["native", "little"] | None = Field(None, description="Of base64, which is always little.")
    use_activation: StrictBool | None = Field(
        None, description="Scale vectors to length 1; `false` only where the model does not do so itself."
    )
    add_special_tokens: StrictBool = Field(True, description="As the model wants them around a text.")


def check_types(asked: EmbeddingsRequest) -> OutputType:
    """Raises InvalidField where the two names of the field contradict each other."""
    given = {TYPES[each] for each in (asked.output_dtype, asked.embed_dtype) if each is not None}
    if len(given) > 1:
        raise InvalidField("output_dtype and embed_dtype are one choice; leave one out", param="embed_dtype")
    return given.pop() if given else "float"


async def create_embeddings(call: Call, state: ServerState) -> Reply:
    asked = parse_body(EmbeddingsRequest, call.take_body())
    call.adopt_request_id(asked.request_id)
    model = state.pick_model(asked.model, embed.TASK)
    call.model = model.name
    kind = check_types(asked)
    params = embed.build_params(
        model.info,
        dimensions=asked.dimensions,
        normalize=asked.use_activation,
        types=(kind,),
        normalize_field="use_activation",
    )
    truncation, max_input_tokens = asked.limit_inputs(model)
    job = TextJob(
        embed.TASK,
        list_inputs(asked.input),
        "input",
        params,
        prompt=choose_prompt(
            model.info, text=asked.prompt, name=asked.prompt_name, input_type=asked.input_type, task=asked.task
        ),
        truncation=truncation,
        add_special_tokens=asked.add_special_tokens,
        max_input_tokens=max_input_tokens,
        priority=asked.priority or 0,
    )
    rows = (await run_job(call, model, job))[embed.name_array(kind)].values
    is_base64 = asked.encoding_format == "base64"
    write = partial(format_embeddings, rows, model.full_name, call.times.num_tokens, is_base64=is_base64)
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
    operation_id="openai_embed",
    reply=EmbeddingsReply,
    error_reply=ErrorReply,
    deadline="default",
)
ROUTES = (ROUTE, replace(ROUTE, path="/embeddings", is_listed=False, label=ROUTE.path))
