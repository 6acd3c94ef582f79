"""text-embeddings-inference's classifier and tokenizer routes, as its clients speak them."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictBool
from typing_extensions import TypedDict

from models.info import ModelInfo
from server.errors import InputTooLong, InvalidField, Kind, ServiceError
from server.http.api.fields import MAX_LIST, ModelName, Texts, TruncationFields
from server.http.body import parse_body
from server.http.call import Call, Reply
from server.http.endpoint import TextJob, check_places, run_job
from server.http.replies import INLINE_ITEMS, write_reply
from server.http.route import Route, Shape
from server.http.state import ServedModel, ServerState
from server.tasks import classify
from server.text.inputs import Input, Text
from server.text.prompts import find_default, find_prompt
from server.text.tokenizer import Piece

PART_PIECES = 1000
"""Written at a time, in less than 1 ms."""


@contextmanager
def offer_truncation() -> Iterator[None]:
    """Who sends what is too long learns how to have it cut. Raises InputTooLong."""
    try:
        yield
    except InputTooLong as error:
        raise InputTooLong(f"{error.message}, or set truncate to true", error.param) from None


class PredictRequest(TruncationFields):
    """Body of `POST /predict`."""

    inputs: Annotated[
        str | Texts | Annotated[list[Texts], Field(fail_fast=True, max_length=MAX_LIST)],
        Field(
            union_mode="left_to_right",
            description="a text, a pair [a, b], or a batch of both [[a], [a, b], ...]",
        ),
    ]
    raw_scores: StrictBool = Field(False, description="Logits instead of probabilities.")
    model: ModelName | None = Field(None, description="Needed only where several classifiers are served.")


class TokenizeRequest(BaseModel):
    """Body of `POST /tokenize`."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    inputs: Annotated[str | Texts, Field(union_mode="left_to_right", description="a text or a list of texts")]
    add_special_tokens: StrictBool = True
    prompt_name: ModelName | None = Field(None, description="One of the model's own prompts, before each text.")
    model: ModelName | None = Field(None, description="Needed only where several models are served.")


class ErrorResponse(TypedDict):
    """Of every route here."""

    error: str
    error_type: str


class Prediction(TypedDict):
    label: str
    score: float


class SimpleToken(TypedDict):
    """One token; `start` and `stop` count characters, and are null for special tokens."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


async def predict(call: Call, state: ServerState) -> Reply:
    """A list of labels for a single input, a list of those for a batch."""
    scores, model, is_batch = await predict_scores(call, state, parse_body(PredictRequest, call.take_body()))
    write = partial(write_labels, scores, model.info, is_batch=is_batch)
    return await write_reply(write, scores.size, INLINE_ITEMS, model)


async def predict_scores(
    call: Call, state: ServerState, asked: PredictRequest
) -> tuple[classify.Rows, ServedModel, bool]:
    """float32 `[n, labels]`, who computed them, and whether the client sent a batch."""
    model = state.pick_model(asked.model, classify.TASK)
    call.model = model.name
    inputs, is_batch = list_inputs(asked.inputs)

    truncation = asked.choose_truncation(model.config.limits.truncation)
    params = classify.ClassifyParams()
    job = TextJob(classify.TASK, inputs, "inputs", params, prompt=find_default(model.info), truncation=truncation)
    with offer_truncation():
        logits = (await run_job(call, model, job))["logits"].values
    scores = logits if asked.raw_scores else classify.compute_scores(logits, model.info)
    return scores, model, is_batch


def write_labels(scores: classify.Rows, info: ModelInfo, *, is_batch: bool) -> bytes:
    ranked = classify.rank_labels(scores, info)
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


async def tokenize(call: Call, state: ServerState) -> Reply:
    pieces, model = await describe_tokens(call, state, parse_body(TokenizeRequest, call.take_body()))
    return Reply(await model.tokenizer.run(partial(write_pieces, pieces)))


async def describe_tokens(
    call: Call, state: ServerState, asked: TokenizeRequest
) -> tuple[list[list[Piece]], ServedModel]:
    """Of each text. It takes a place like any other call: tokenising costs time too."""
    model = state.pick_model(asked.model)
    call.model = model.name
    texts = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
    if asked.prompt_name is not None:
        prompt = find_prompt(model.info, asked.prompt_name).text
        texts = [prompt + text if text else text for text in texts]
    check_places(len(texts), model, "inputs")
    with model.admission.admit(len(texts), 0, deadline_s=call.deadline_s, tokens_per_s=0.0):
        pieces = await model.tokenizer.describe(texts, add_special_tokens=asked.add_special_tokens, field="inputs")
    call.times.num_inputs = len(texts)
    call.times.num_tokens = sum(len(item) for item in pieces)
    return pieces, model


def write_pieces(texts: list[list[Piece]]) -> bytes:
    """A piece is a hundred bytes, of a text of one: in parts, between which others have their turn at the GIL."""
    return b"[" + b",".join(b"[" + b",".join(write_parts(pieces)) + b"]" for pieces in texts) + b"]"


def write_parts(pieces: list[Piece]) -> Iterator[bytes]:
    for begin in range(0, len(pieces), PART_PIECES):
        yield orjson.dumps([piece._asdict() for piece in pieces[begin : begin + PART_PIECES]])[1:-1]


SHAPES: dict[Kind, tuple[int, str]] = {
    Kind.EMPTY_INPUT: (400, "Empty"),
    Kind.TOKENIZER: (422, "Tokenizer"),
    Kind.UNAUTHENTICATED: (401, "Unauthorized"),
    Kind.FORBIDDEN: (403, "Forbidden"),
    Kind.UNKNOWN_MODEL: (404, "Validation"),
    Kind.UNKNOWN_ROUTE: (404, "Validation"),
    Kind.METHOD_NOT_ALLOWED: (405, "Validation"),
    Kind.BODY_TOO_LARGE: (413, "Validation"),
    Kind.UNSUPPORTED_ENCODING: (415, "Validation"),
    Kind.OVERLOADED: (429, "Overloaded"),
    Kind.UNAVAILABLE: (503, "Unhealthy"),
    Kind.DEADLINE: (504, "Timeout"),
    Kind.ENGINE_FAILURE: (500, "Backend"),
    Kind.INVALID_ANSWER: (500, "Backend"),
    Kind.INTERNAL: (500, "Backend"),
}
"""Status and type; of other kinds 422 and Validation. TEI answers a failed backend with 424, which no client retries
and no proxy counts as a server error: 500 here."""


def render_error(error: ServiceError) -> Shape:
    status, kind = SHAPES.get(error.kind, (422, "Validation"))
    return Shape(status, {"error": error.message, "error_type": kind})


ROUTES = (
    Route(
        "POST",
        "/predict",
        predict,
        render_error,
        "Classify texts or pairs of texts",
        "text-embeddings-inference",
        schema=PredictRequest.model_json_schema(),
        schema_name="PredictRequest",
        reply=list[Prediction] | list[list[Prediction]],
        error_reply=ErrorResponse,
        deadline="default",
    ),
    Route(
        "POST",
        "/tokenize",
        tokenize,
        render_error,
        "Show the tokens of texts",
        "text-embeddings-inference",
        schema=TokenizeRequest.model_json_schema(),
        schema_name="TokenizeRequest",
        reply=list[list[SimpleToken]],
        error_reply=ErrorResponse,
        deadline="default",
    ),
)
