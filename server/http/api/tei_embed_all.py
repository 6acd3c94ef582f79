"""text-embeddings-inference's embeddings of tokens."""

from functools import partial

import orjson
from pydantic import Field

from server.http.api.fields import Label, ModelName, TextsOrIds, TruncationFields, list_inputs
from server.http.api.tei import ErrorResponse, offer_truncation, render_error
from server.http.api.vectors import encode_rows
from server.http.body import parse_body
from server.http.call import Call, Reply
from server.http.endpoint import run_job
from server.http.replies import INLINE_NUMBERS, write_reply
from server.http.route import Route
from server.http.state import ServedModel, ServerState
from server.http.token_vectors import bound_numbers, build_job
from server.tasks import token_embed
from server.text.prompts import find_prompt
from server.wire.job import Ragged


class EmbedAllRequest(TruncationFields):
    """Body of `POST /embed_all`."""

    inputs: TextsOrIds
    prompt_name: Label | None = Field(None, description="One of the model's own prompts, in place of the default.")
    model: ModelName | None = Field(None, description="Needed only where several models embed.")


async def embed_tokens(call: Call, state: ServerState) -> Reply:
    """For each input, also for a single one, a list of its tokens' vectors."""
    rows, model = await compute_token_rows(call, state, parse_body(EmbedAllRequest, call.take_body()))
    return await write_reply(partial(write_token_rows, rows), rows.values.size, INLINE_NUMBERS, model)


async def compute_token_rows(call: Call, state: ServerState, asked: EmbedAllRequest) -> tuple[Ragged, ServedModel]:
    """float32 `[num_tokens, width]`, a part of it for each input, and who computed it."""
    model = state.pick_model(asked.model, token_embed.TASK)
    call.model = model.name
    job = build_job(
        model,
        list_inputs(asked.inputs),
        "inputs",
        prompt=None if asked.prompt_name is None else find_prompt(model.info, asked.prompt_name),
        truncation=None if asked.truncate is None else asked.choose_truncation("error"),
    )
    with offer_truncation():
        return (await run_job(call, model, bound_numbers(job, model)))["token_embeddings"], model


def write_token_rows(rows: Ragged) -> bytes:
    return orjson.dumps([encode_rows(rows.row(index)) for index in range(len(rows))])


ROUTES = (
    Route(
        *("POST", "/embed_all", embed_tokens, render_error, "Embed every token", "text-embeddings-inference"),
        schema=EmbedAllRequest.model_json_schema(),
        operation_id="embed_all",
        schema_name="EmbedAllRequest",
        reply=list[list[list[float]]],
        error_reply=ErrorResponse,
        deadline="default",
    ),
)
