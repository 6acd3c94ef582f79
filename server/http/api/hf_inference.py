"""Hugging Face's inference payloads, `{"inputs": ..., "parameters": {...}}`, as huggingface_hub.InferenceClient posts
them to a model's address. What is done is what the model is for."""

from collections.abc import Awaitable, Callable
from functools import partial

import numpy as np
import orjson
from typing_extensions import TypedDict

from server.errors import ServiceError
from server.http.api.hf_labels import classify_texts, classify_tokens, classify_without_training
from server.http.api.hf_request import FeatureExtraction, InferenceRequest, read_parameters
from server.http.api.hf_similarity import compare_sentences, is_comparison
from server.http.api.hf_text2text import write_for_texts
from server.http.api.hf_words import answer_questions, fill_masks
from server.http.api.statuses import find_status
from server.http.body import parse_body
from server.http.call import Call, Reply
from server.http.endpoint import TextJob, run_job
from server.http.replies import INLINE_NUMBERS, write_reply
from server.http.route import Route, Shape
from server.http.state import ServedModel, ServerState
from server.tasks import classify, embed, fill_mask, question_answering, text2text, token_classify
from server.tasks.task import Task
from server.text.prompts import choose_prompt


class HfErrorReply(TypedDict):
    """Of every route here."""

    error: str


async def infer(call: Call, state: ServerState) -> Reply:
    """For a client that was given the server's own address."""
    asked = parse_body(InferenceRequest, call.take_body())
    return await serve(call, state, state.pick_model(asked.model), asked)


async def infer_with_model(call: Call, state: ServerState) -> Reply:
    asked = parse_body(InferenceRequest, call.take_body())
    return await serve(call, state, state.find_model(call.rest), asked)


async def serve(call: Call, state: ServerState, model: ServedModel, asked: InferenceRequest) -> Reply:
    """Raises WrongTask where the model does none of what can be asked for here, or not what the body is about."""
    call.model = model.name
    if (asked.parameters or {}).get("candidate_labels") is not None:  # which every other task would ignore
        return await classify_without_training(call, model.pick_head(classify.TASK), asked)
    if text2text.TASK.can_use(model.info):
        return await write_for_texts(call, state, model, asked)
    for head in model.heads:
        for task, answer in ANSWERS:
            if task.can_use(head.info):
                return await answer(call, head, asked)
    model.pick_head(ANSWERS[0][0])
    raise AssertionError("The model can do what it was refused for. This is a bug.")


async def extract_features(call: Call, model: ServedModel, asked: InferenceRequest) -> Reply:
    """A vector of each text, always as a list, or cosines. The client's parameters stand beside `inputs`."""
    beside = {name: getattr(asked, name) for name in FeatureExtraction.model_fields}
    wanted = read_parameters(FeatureExtraction, beside | (asked.parameters or {}))
    params = embed.build_params(model.info, dimensions=wanted.dimensions, normalize=wanted.normalize)
    prompt = choose_prompt(model.info, name=wanted.prompt_name)
    truncation = wanted.choose_truncation(model.config.limits.truncation)
    if is_comparison(asked.inputs):
        return await compare_sentences(call, model, asked.inputs, prompt, truncation)
    job = TextJob(embed.TASK, asked.list_texts(), "inputs", params, prompt=prompt, truncation=truncation)
    rows = (await run_job(call, model, job))["embeddings"].values
    write = partial(orjson.dumps, np.ascontiguousarray(rows), option=orjson.OPT_SERIALIZE_NUMPY)
    return await write_reply(write, rows.size, INLINE_NUMBERS, model)


Answer = Callable[[Call, ServedModel, InferenceRequest], Awaitable[Reply]]
ANSWERS: tuple[tuple[Task, Answer], ...] = (
    (token_classify.TASK, classify_tokens),
    (question_answering.TASK, answer_questions),
    (fill_mask.TASK, fill_masks),
    (classify.TASK, classify_texts),
    (embed.TASK, extract_features),
)


def render_error(error: ServiceError) -> Shape:
    return Shape(find_status(error.kind), {"error": error.message})


class EntityReply(TypedDict, total=False):
    """`entity` and `index` of a single token, `entity_group` of several. `start` and `end` count characters."""

    entity: str
    entity_group: str
    index: int
    score: float
    word: str
    start: int
    end: int


class LabelReply(TypedDict):
    label: str
    score: float


class WordReply(TypedDict):
    """`sequence`: the text with the word in the masked place."""

    score: float
    token: int
    token_str: str
    sequence: str


class AnswerReply(TypedDict):
    """`start` and `end` count characters of the context."""

    score: float
    start: int
    end: int
    answer: str


class WrittenReply(TypedDict, total=False):
    """One of them, by what the model is for."""

    translation_text: str
    summary_text: str
    generated_text: str


InferenceReply = (
    list[EntityReply]
    | list[list[EntityReply]]
    | list[LabelReply]
    | list[list[LabelReply]]
    | list[WordReply]
    | list[list[WordReply]]
    | list[list[list[WordReply]]]
    | AnswerReply
    | list[AnswerReply]
    | list[list[AnswerReply]]
    | list[WrittenReply]
    | list[list[WrittenReply]]
    | list[list[float]]
    | list[float]
)
ROUTES = (
    Route(
        *("POST", "/models/{name}", infer_with_model, render_error, "Do what a model is for", "hugging face"),
        schema=InferenceRequest.model_json_schema(),
        reply=InferenceReply,
        error_reply=HfErrorReply,
        deadline="default",
    ),
    Route(
        *("POST", "/", infer, render_error, "Do what the only model is for", "hugging face"),
        schema=InferenceRequest.model_json_schema(),
        reply=InferenceReply,
        error_reply=HfErrorReply,
        deadline="default",
    ),
)
