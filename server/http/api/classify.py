"""vLLM's classification: for each input its best label, and what all labels have."""

from functools import partial
from time import time
from typing import Any, Literal

import orjson
from pydantic import Field, StrictBool
from typing_extensions import TypedDict

from models.info import ModelInfo
from server.http.api.fields import ModelName, TextsOrIds, list_inputs
from server.http.api.openai_errors import render_error
from server.http.api.openai_schemas import EmbeddingUsage, ErrorReply, count_usage
from server.http.api.pooling_fields import PoolingFields
from server.http.body import parse_body
from server.http.call import Call, Reply
from server.http.endpoint import TextJob, run_job
from server.http.replies import INLINE_ITEMS, write_reply
from server.http.route import Route
from server.http.state import ServerState
from server.tasks import classify
from server.text.prompts import find_default


class ClassifyRequest(PoolingFields):
    """Body of `POST /classify`."""

    model: ModelName | None = Field(None, description="Needed only where several models classify.")
    input: TextsOrIds
    use_activation: StrictBool | None = Field(None, description="false: logits in place of probabilities.")
    add_special_tokens: StrictBool = True


class Classified(TypedDict):
    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassifyReply(TypedDict):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Classified]
    usage: EmbeddingUsage


async def classify_inputs(call: Call, state: ServerState) -> Reply:
    asked = parse_body(ClassifyRequest, call.take_body())
    call.adopt_request_id(asked.request_id)
    model = state.pick_model(asked.model, classify.TASK)
    call.model = model.name
    truncation, max_input_tokens = asked.limit_inputs(model)
    job = TextJob(
        *(classify.TASK, list_inputs(asked.input), "input", classify.ClassifyParams()),
        prompt=find_default(model.info),
        truncation=truncation,
        add_special_tokens=asked.add_special_tokens,
        max_input_tokens=max_input_tokens,
        priority=asked.priority or 0,
    )
    logits = (await run_job(call, model, job))["logits"].values
    scores = logits if asked.use_activation is False else classify.compute_scores(logits, model.info)
    head = {
        "id": f"classify-{call.request_id.decode()}",
        "object": "list",
        "created": int(time()),
        "model": model.full_name,
        "usage": count_usage(call.times.num_tokens),
    }
    write = partial(write_answer, head, scores, model.info)
    return await write_reply(write, scores.size, INLINE_ITEMS, model)


def write_answer(head: dict[str, Any], scores: classify.Rows, info: ModelInfo) -> bytes:
    """Labels in the order of their numbers; of equal ones the first is the best."""
    names = [info.id2label.get(index, f"LABEL_{index}") for index in range(scores.shape[1])]
    data = [
        {"index": index, "label": names[int(best)], "probs": row, "num_classes": len(names)}
        for index, (best, row) in enumerate(zip(scores.argmax(1), scores.tolist(), strict=True))
    ]
    return orjson.dumps({**head, "data": data})


ROUTES = (
    Route(
        "POST",
        "/classify",
        classify_inputs,
        render_error,
        "Classify texts or token ids",
        "vllm",
        schema=ClassifyRequest.model_json_schema(),
        reply=ClassifyReply,
        error_reply=ErrorReply,
        deadline="default",
    ),
)
