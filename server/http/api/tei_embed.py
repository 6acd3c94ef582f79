"""text-embeddings-inference's embeddings, and its way from token ids back to texts."""

from functools import partial
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from server.http.api.fields import Label, ModelName, TextsOrIds, TokenIds, TokenLists, TruncationFields, list_inputs
from server.http.api.tei import ErrorResponse, offer_truncation, render_error
from server.http.api.vectors import Vectors, encode_rows
from server.http.body import parse_body
from server.http.call import Call, Reply
from server.http.endpoint import TextJob, check_places, run_job
from server.http.replies import INLINE_NUMBERS, write_reply
from server.http.route import Route
from server.http.state import ServedModel, ServerState
from server.tasks import embed
from server.text.prompts import choose_prompt


class EmbedRequest(TruncationFields):
    """Body of `POST /embed`."""

    inputs: TextsOrIds
    normalize: StrictBool = Field(
        True, description="Scale vectors to length 1; `false` only where the model does not do so itself."
    )
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = Field(None, description="Keep so many leading dimensions.")
    prompt_name: Label | None = Field(None, description="One of the model's own prompts, in place of the default.")
    model: ModelName | None = Field(None, description="Needed only where several models embed.")


class DecodeRequest(BaseModel):
    """Body of `POST /decode`."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    ids: Annotated[
        TokenIds | TokenLists,
        Field(
            union_mode="left_to_right",
            description="a list of token ids, or a list of such lists",
            examples=[[2, 5, 3]],
        ),
    ]
    skip_special_tokens: StrictBool = True
    model: ModelName | None = Field(None, description="Needed only where several models are served.")


async def embed_inputs(call: Call, state: ServerState) -> Reply:
    """A list of vectors, of one too."""
    rows, model = await compute_vectors(call, state, parse_body(EmbedRequest, call.take_body()))
    return await write_reply(partial(write_vectors, rows), rows.size, INLINE_NUMBERS, model)


async def compute_vectors(call: Call, state: ServerState, asked: EmbedRequest) -> tuple[Vectors, ServedModel]:
    """float32 `[n, width]`, and who computed them."""
    model = state.pick_model(asked.model, embed.TASK)
    call.model = model.name
    params = embed.build_params(model.info, dimensions=asked.dimensions, normalize=asked.normalize)
    job = TextJob(
        embed.TASK,
        list_inputs(asked.inputs),
        "inputs",
        params,
        prompt=choose_prompt(model.info, name=asked.prompt_name),
        truncation=asked.choose_truncation(model.config.limits.truncation),
    )
    with offer_truncation():
        return (await run_job(call, model, job))["embeddings"].values, model


def write_vectors(rows: Vectors) -> bytes:
    return orjson.dumps(encode_rows(rows))


async def decode(call: Call, state: ServerState) -> Reply:
    return Reply(orjson.dumps(await decode_ids(call, state, parse_body(DecodeRequest, call.take_body()))))


async def decode_ids(call: Call, state: ServerState, asked: DecodeRequest) -> list[str]:
    """It takes a place like any other call, as tokenising does."""
    model = state.pick_model(asked.model)
    call.model = model.name
    lists: list[Any] = [asked.ids] if asked.ids and isinstance(asked.ids[0], int) else asked.ids
    check_places(len(lists), model, "ids")
    with model.admission.admit(len(lists), 0, deadline_s=call.deadline_s, tokens_per_s=0.0):
        texts = await model.tokenizer.decode(lists, skip_special_tokens=asked.skip_special_tokens, field="ids")
    call.times.num_inputs = len(lists)
    call.times.num_tokens = sum(map(len, lists))
    return texts


ROUTES = (
    Route(
        "POST",
        "/embed",
        embed_inputs,
        render_error,
        "Embed texts or token ids",
        "text-embeddings-inference",
        schema=EmbedRequest.model_json_schema(),
        operation_id="embed",
        schema_name="EmbedRequest",
        reply=list[list[float]],
        error_reply=ErrorResponse,
        deadline="default",
    ),
    Route(
        "POST",
        "/decode",
        decode,
        render_error,
        "Turn token ids into texts",
        "text-embeddings-inference",
        schema=DecodeRequest.model_json_schema(),
        schema_name="DecodeRequest",
        reply=list[str],
        error_reply=ErrorResponse,
        deadline="default",
    ),
)
