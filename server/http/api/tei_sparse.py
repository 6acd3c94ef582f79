"""text-embeddings-inference's sparse vectors."""

from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictBool, field_validator
from typing_extensions import TypedDict

from server.http.api.fields import Label, ModelName, Texts, TokenIds, TokenLists
from server.http.api.tei import TeiErrorReply, render_error
from server.http.body import parse_body
from server.http.call import Call, Reply
from server.http.endpoint import TextJob, run_job
from server.http.route import Route
from server.http.state import ServerState
from server.tasks import sparse
from server.text.inputs import Input
from server.text.prompts import choose_prompt
from server.wire.job import Ragged

INLINE_WEIGHTS = 8192
"""So many are written on the event loop's thread, in some 5 ms."""


class SparseRequest(BaseModel):
    """Body of `POST /embed_sparse`."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    inputs: Annotated[
        str | Texts | TokenIds | TokenLists,
        Field(
            union_mode="left_to_right",
            description="a text, a list of texts, a list of token ids, or a list of lists of token ids",
        ),
    ]
    truncate: StrictBool | None = Field(None, description="What the server's configuration says if absent.")
    truncation_direction: Literal["left", "right"] = Field(
        "right", description="The end that is cut off; `Left` and `Right` are understood as well."
    )
    prompt_name: Label | None = None
    model: ModelName | None = Field(None, description="Needed only where several such models are served.")

    @field_validator("truncation_direction", mode="before")
    @classmethod
    def lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value


class Weight(TypedDict):
    index: int
    value: float


async def embed_sparse(call: Call, state: ServerState) -> Reply:
    """A list for each input, also for a single one."""
    asked = parse_body(SparseRequest, call.take_body())
    model = state.pick_model(asked.model, sparse.TASK)
    call.model = model.name
    truncation = model.config.limits.truncation
    if asked.truncate is not None:
        truncation = asked.truncation_direction if asked.truncate else "error"
    job = TextJob(
        *(sparse.TASK, list_inputs(asked.inputs), "inputs", sparse.SparseParams()),
        prompt=choose_prompt(model.info, name=asked.prompt_name),
        truncation=truncation,
    )
    arrays = await run_job(call, model, job)
    write = partial(write_weights, arrays["indices"], arrays["weights"])
    is_small = len(arrays["weights"].values) <= INLINE_WEIGHTS
    return Reply(write() if is_small else await model.tokenizer.run(write))


def list_inputs(given: str | list[Any]) -> list[Input]:
    """One entry per sequence."""
    return [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given


def write_weights(indices: Ragged, weights: Ragged) -> bytes:
    """By token id, row after row."""
    rows = [
        [{"index": index, "value": value} for index, value in zip(ids.tolist(), values.tolist(), strict=True)]
        for ids, values in ((indices.row(row), weights.row(row).astype(np.float64)) for row in range(len(indices)))
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
        reply=list[list[Weight]],
        error_reply=TeiErrorReply,
        deadline="default",
    ),
)
