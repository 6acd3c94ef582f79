"""vLLM's scores: how well texts answer others, in the order they came, on the scale of the model's directory."""

from collections.abc import Sequence
from dataclasses import replace
from time import time
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool
from typing_extensions import TypedDict

from server.errors import InvalidField
from server.http.api.fields import ModelName, Texts
from server.http.api.openai_errors import render_error
from server.http.api.openai_schemas import EmbeddingUsage, ErrorReply, count_usage
from server.http.api.pooling_fields import PoolingFields
from server.http.body import parse_body
from server.http.call import Call, Reply, reply_json
from server.http.ranking import Question, SideTexts, pick_ranker, score
from server.http.route import Route
from server.http.state import ServedModel, ServerState
from server.tasks.rerank import Scores

NAMES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
"""Of the two sides, oldest first."""
GivenTexts = Annotated[str | Texts, Field(union_mode="left_to_right", description="a text or a list of texts")]


class ScoreRequest(PoolingFields):
    """Body of `POST /score`."""

    model: ModelName | None = Field(None, description="Needed only where several models rank.")
    text_1: GivenTexts | None = Field(None, examples=["What is the capital of France?"])
    text_2: GivenTexts | None = Field(None, examples=[["Paris is.", "Lyon is not."]])
    queries: GivenTexts | None = None
    documents: GivenTexts | None = None
    items: GivenTexts | None = None
    data_1: GivenTexts | None = None
    data_2: GivenTexts | None = None
    use_activation: StrictBool | None = Field(None, description="false: logits.")


class Score(TypedDict):
    index: int
    object: Literal["score"]
    score: float


class ScoreReply(TypedDict):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: EmbeddingUsage


async def score_texts(call: Call, state: ServerState) -> Reply:
    """One text against all others, or each against the one in its place."""
    asked = parse_body(ScoreRequest, call.take_body())
    call.adopt_request_id(asked.request_id)
    model = pick_ranker(state, asked.model)
    call.model = model.name
    first, second = find_sides(asked)
    if len(first.texts) not in (1, len(second.texts)):
        raise InvalidField(
            f"{first.field} has {len(first.texts)} texts and {second.field} has {len(second.texts)}; there must be as "
            f"many, or one in {first.field}",
            param=first.field,
        )
    truncation, max_input_tokens = asked.limit_pairs(model)
    question = Question(
        first,
        second,
        truncation,
        "raw" if asked.use_activation is False else "own",
        max_input_tokens=max_input_tokens,
        priority=asked.priority or 0,
    )
    return reply_json(describe(call, model, await score(call, model, question)))


def find_sides(asked: ScoreRequest) -> tuple[SideTexts, SideTexts]:
    """Under the first pair of names that are both there. Raises InvalidField."""
    for names in NAMES:
        first, second = (getattr(asked, name) for name in names)
        if first is not None and second is not None:
            return SideTexts(list_texts(first), names[0]), SideTexts(list_texts(second), names[1])
    raise InvalidField("text_1 and text_2 must both be there, or queries and documents", param="text_1")


def list_texts(given: str | list[str]) -> Sequence[str]:
    return [given] if isinstance(given, str) else given


def describe(call: Call, model: ServedModel, scores: Scores) -> dict[str, Any]:
    num_tokens = call.times.num_tokens
    return {
        "id": f"score-{call.request_id.decode()}",
        "object": "list",
        "created": int(time()),
        "model": model.full_name,
        "data": [{"index": index, "object": "score", "score": value} for index, value in enumerate(scores.tolist())],
        "usage": count_usage(num_tokens),
    }


ROUTE = Route(
    "POST",
    "/score",
    score_texts,
    render_error,
    "Score how well texts answer others",
    "rerank",
    schema=ScoreRequest.model_json_schema(),
    reply=ScoreReply,
    error_reply=ErrorReply,
    deadline="default",
)
ROUTES = (ROUTE, replace(ROUTE, path="/v1/score", is_listed=False, label=ROUTE.path))
