"""Hugging Face's inference payloads for models that label: tokens, texts, and texts with labels of the client's own."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Annotated, Literal

import orjson
from pydantic import BaseModel, Field, StrictBool, StrictInt

from server.errors import InputTooLong, InvalidField
from server.http.api.fields import MAX_LIST, MAX_NAME_CHARS, Label
from server.http.api.hf_request import InferenceRequest, Labels, read_parameters
from server.http.call import Call, Reply, reply_json
from server.http.endpoint import TextJob, check_places, run_job, run_located
from server.http.replies import INLINE_ITEMS, make_parts, write_list, write_reply
from server.http.state import ServedModel
from server.tasks import classify, token_classify, zero_shot
from server.text.inputs import Text
from server.text.located import Window
from server.text.prompts import find_default
from server.wire.job import Ragged

ITEMS_PER_TOKEN = 32
"""To find entities takes about as long by token, 15 to 60 us."""


class TokenClassification(BaseModel):
    """Parameters for models that classify tokens."""

    aggregation_strategy: token_classify.Aggregation = "simple"
    ignore_labels: Labels = ["O"]
    stride: Annotated[StrictInt, Field(ge=0, le=MAX_LIST)] | None = None


class TextClassification(BaseModel):
    """Parameters for classifiers."""

    top_k: Annotated[StrictInt, Field(ge=1, le=MAX_LIST)] | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None


class ZeroShotClassification(BaseModel):
    """Parameters for classifiers of natural language inference."""

    candidate_labels: Annotated[
        Annotated[str, Field(max_length=MAX_NAME_CHARS)] | Labels,
        Field(description="a list of labels, or a text with commas between them"),
    ]
    multi_label: StrictBool = False
    hypothesis_template: Label = "This example is {}."


async def classify_tokens(call: Call, model: ServedModel, asked: InferenceRequest) -> Reply:
    """Entities of each text."""
    wanted = read_parameters(TokenClassification, asked.parameters)
    if wanted.stride is not None and wanted.aggregation_strategy == "none":
        raise InvalidField("stride needs an aggregation_strategy other than none", param="stride")
    job = TextJob(
        token_classify.TASK,
        asked.list_texts(),
        "inputs",
        token_classify.TokenClassifyParams(),
        truncation=model.config.limits.truncation,
        stride=wanted.stride,
        wants_places=True,
    )
    try:
        arrays, windows = await run_located(call, model, job)
    except InputTooLong as error:
        hint = "" if wanted.stride is not None else ", or set a stride, which cuts it into windows"
        raise InputTooLong(f"{error.message}{hint}", error.param) from None
    reader = token_classify.EntityReader(
        model.info, model.tokenizer, wanted.aggregation_strategy, frozenset(wanted.ignore_labels)
    )
    size = call.times.num_tokens * ITEMS_PER_TOKEN
    answers = await make_parts(write_entities(reader, windows, arrays["token_logits"]), size, INLINE_ITEMS, model)
    return await write_reply(lambda: asked.join(answers), size, INLINE_ITEMS, model)


def write_entities(
    reader: token_classify.EntityReader, windows: list[list[Window]], logits: Ragged
) -> Iterator[bytes | None]:
    """JSON of one text after the other, and None on the way to it."""
    rows = (logits.row(index) for index in range(len(logits)))
    for each in windows:
        entities = yield from reader.read(each, list(islice(rows, len(each))))
        yield (yield from write_list(entities))


async def classify_texts(call: Call, model: ServedModel, asked: InferenceRequest) -> Reply:
    """Labels of each input, always as a list of lists: the client takes the first of a single text's."""
    wanted = read_parameters(TextClassification, asked.parameters)
    logits = await compute_logits(call, model, asked.list_inputs())
    scores = apply_function(logits, wanted.function_to_apply, model)
    return await write_reply(partial(write_labels, scores, wanted.top_k, model), scores.size, INLINE_ITEMS, model)


def write_labels(scores: classify.Rows, top_k: int | None, model: ServedModel) -> bytes:
    return orjson.dumps([labels[:top_k] for labels in classify.rank_labels(scores, model.info)])


def apply_function(logits: classify.Rows, name: str | None, model: ServedModel) -> classify.Rows:
    """`[n, num_labels]`; None: what the model's own configuration says."""
    if name is None:
        return classify.compute_scores(logits, model.info)
    functions = {"sigmoid": classify.compute_sigmoid, "softmax": classify.compute_softmax}
    return functions[name](logits) if name in functions else logits


async def compute_logits(
    call: Call, model: ServedModel, inputs: Sequence[Text], *, cuts_first: bool = False
) -> classify.Rows:
    """`[num_inputs, num_labels]`."""
    job = TextJob(
        classify.TASK,
        inputs,
        "inputs",
        classify.ClassifyParams(),
        prompt=find_default(model.info),
        truncation=model.config.limits.truncation,
        cuts_first=cuts_first,
    )
    logits: classify.Rows = (await run_job(call, model, job))["logits"].values
    return logits


async def classify_without_training(call: Call, model: ServedModel, asked: InferenceRequest) -> Reply:
    """Texts times labels are the inputs of one job."""
    wanted = read_parameters(ZeroShotClassification, asked.parameters)
    entailment = zero_shot.find_entailment(model.info)
    texts, labels = asked.list_texts(), zero_shot.split_labels(wanted.candidate_labels)
    check_places(len(texts) * len(labels), model, "inputs times candidate_labels")
    hypotheses = zero_shot.write_hypotheses(wanted.hypothesis_template, labels)
    pairs = [(text, hypothesis) for text in texts for hypothesis in hypotheses]
    logits = await compute_logits(call, model, pairs, cuts_first=True)
    logits = logits.reshape(len(texts), len(labels), -1)
    scores = zero_shot.score_labels(logits, entailment, multi_label=wanted.multi_label)
    return reply_json(asked.unwrap([zero_shot.rank(row, labels) for row in scores]))
