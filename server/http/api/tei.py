"""text-embeddings-inference's classifier and tokenizer routes, as its clients speak them."""

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, field_validator

from server.errors import InvalidField
from server.http.body import parse_body
from server.http.endpoint import LeanRoute, describe_request, serve_call
from server.http.pipeline import HttpCall, check_count, run_inputs
from server.http.state import ServerState
from server.tasks.scores import compute_scores, rank_labels
from server.text.tokenizer import Input, Text, Truncation

router = APIRouter(route_class=LeanRoute, tags=["text-embeddings-inference"])

Texts = Annotated[list[str], Field(fail_fast=True)]


class PredictRequest(BaseModel):
    """Body of `POST /predict`."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    inputs: Annotated[
        str | Texts | Annotated[list[Texts], Field(fail_fast=True)],
        Field(
            union_mode="left_to_right",
            description="a text, a pair [a, b], or a batch of both [[a], [a, b], ...]",
        ),
    ]
    truncate: StrictBool | None = Field(None, description="What the server's configuration says if absent.")
    truncation_direction: Literal["left", "right"] = Field(
        "right", description="The end that is cut off; `Left` and `Right` are understood as well."
    )
    raw_scores: StrictBool = Field(False, description="Logits instead of probabilities.")
    model: str | None = Field(None, description="Needed only where several classifiers are served.")

    @field_validator("truncation_direction", mode="before")
    @classmethod
    def lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    def choose_truncation(self, configured: Truncation) -> Truncation:
        """The request's word, else the server's."""
        if self.truncate is None:
            return configured
        return self.truncation_direction if self.truncate else "error"


class TokenizeRequest(BaseModel):
    """Body of `POST /tokenize`."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    inputs: Annotated[str | Texts, Field(union_mode="left_to_right", description="a text or a list of texts")]
    add_special_tokens: StrictBool = True
    model: str | None = Field(None, description="Needed only where several models are served.")


@router.post(
    "/predict",
    summary="Classify texts or pairs of texts",
    openapi_extra=describe_request(PredictRequest.model_json_schema()),
)
async def predict(request: Request) -> Response:
    return await serve_call(request, route="/predict", protocol="tei", work=classify)


async def classify(call: HttpCall, state: ServerState, body: bytes) -> bytes:
    """One call from body to body: a list of labels for a single input, a list of those for a batch."""
    asked = parse_body(PredictRequest, body)
    model = state.pick_model(asked.model, "classify")
    call.model = model.name
    model.check_task("classify")
    inputs, is_batch = list_inputs(asked.inputs)
    truncation = asked.choose_truncation(model.config.limits.truncation)
    answer = await run_inputs(call, model, inputs, field="inputs", truncation=truncation)
    scores = answer.values if asked.raw_scores else compute_scores(answer.values, model.info)
    ranked = rank_labels(scores, model.info)
    return orjson.dumps(ranked if is_batch else ranked[0])


def list_inputs(given: str | list[str] | list[list[str]]) -> tuple[list[Input], bool]:
    """One entry per sequence, and whether the client sent a batch."""
    if isinstance(given, str):
        return [given], False
    if given and isinstance(given[0], str):
        return [build_text(given, "inputs")], False
    return [build_text(item, f"inputs[{index}]") for index, item in enumerate(given)], True


def build_text(item: Any, place: str) -> Text:
    if len(item) == 1:
        text: str = item[0]
        return text
    if len(item) == 2:
        return (item[0], item[1])
    raise InvalidField(
        f"{place} has {len(item)} strings; an input is one string or a pair. A batch is written [[a], [b], ...]",
        param="inputs",
    )


@router.post(
    "/tokenize",
    summary="Show the tokens of texts",
    openapi_extra=describe_request(TokenizeRequest.model_json_schema()),
)
async def tokenize(request: Request) -> Response:
    return await serve_call(request, route="/tokenize", protocol="tei", work=describe_tokens)


async def describe_tokens(call: HttpCall, state: ServerState, body: bytes) -> bytes:
    """One call from body to body. It takes a place like any other: tokenising costs time too."""
    asked = parse_body(TokenizeRequest, body)
    model = state.pick_model(asked.model, None)
    call.model = model.name
    texts = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
    check_count(list(texts), model, "inputs")
    with model.admission.admit(len(texts), 0, deadline_s=call.deadline_s, tokens_per_s=0.0):
        pieces = await model.tokenizer.describe(texts, add_special_tokens=asked.add_special_tokens, field="inputs")
    call.times.num_inputs = len(texts)
    call.times.num_tokens = sum(len(item) for item in pieces)
    return orjson.dumps([[piece._asdict() for piece in item] for item in pieces])
