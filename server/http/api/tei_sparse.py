"""text-embeddings-inference's sparse vectors."""

from collections.abc import Mapping
from functools import partial

import orjson
from pydantic import Field
from typing_extensions import TypedDict

from server.http.api.fields import Label, ModelName, TextsOrIds, TruncationFields, list_inputs
from server.http.api.tei import ErrorResponse, offer_truncation, render_error
from server.http.body import parse_body
from server.http.call import Call, Reply
from server.http.endpoint import TextJob, run_job
from server.http.replies import INLINE_ITEMS, write_reply
from server.http.route import Route
from server.http.state import ServedModel, ServerState
from server.tasks import sparse
from server.text.prompts import choose_prompt
from server.wire.job import Ragged


class SparseRequest(TruncationFields):
    """Body of `POST /embed_sparse`."""

    inputs: TextsOrIds
    prompt_name: Label | None = None
    model: ModelName | None = Field(None, description="Needed only where several such models are served.")


class SparseValue(TypedDict):
    index: int
    value: float


async def embed_sparse(call: Call, state: ServerState) -> Reply:
    """A list for each input, also for a single one."""
    arrays, model = await compute_weights(call, state, parse_body(SparseRequest, call.take_body()))
    write = partial(write_weights, arrays["indices"], arrays["weights"])
    return await write_reply(write, len(arrays["weights"].values), INLINE_ITEMS, model)


async def compute_weights(
    call: Call, state: ServerState, asked: SparseRequest
) -> tuple[Mapping[str, Ragged], ServedModel]:
    """`indices` and `weights`, a row for each input, and who computed them."""
    model = state.pick_model(asked.model, sparse.TASK)
    call.model = model.name
    params = sparse.SparseParams(model.skipped_ids)
    job = TextJob(
        *(sparse.TASK, list_inputs(asked.inputs), "inputs", params),
        prompt=choose_prompt(model.info, name=asked.prompt_name),
        truncation=asked.choose_truncation(model.config.limits.truncation),
    )
    with offer_truncation():
        return await run_job(call, model, job), model


def write_weights(indices: Ragged, weights: Ragged) -> bytes:
    """By token id, row after row."""
    rows = [
        [{"index": index, "value": value} for index, value in zip(ids.tolist(), values.tolist(), strict=True)]
        for ids, values in ((indices.row(row), weights.row(row)) for row in range(len(indices)))
    ]
    return orjson.dumps(rows)


ROUTES = (
    Route(
        "POST",
        "/embed_sparse",
        embed_sparse,
        render_error,
        "Embed texts or token ids sparsely",
        "text-embeddings-inference",
        schema=SparseRequest.model_json_schema(),
        schema_name="EmbedSparseRequest",
        reply=list[list[SparseValue]],
        error_reply=ErrorResponse,
        deadline="default",
    ),
)
