"""Hugging Face's inference payloads, `{"inputs": ..., "parameters": {...}}`, as huggingface_hub.InferenceClient posts
them to a model's address. What is done is what the model is for."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError
from typing_extensions import TypedDict

from server.errors import InputTooLong, InvalidField, ServiceError
from server.http.api.fields import MAX_LIST, MAX_NAME_CHARS, Label, ModelName, Options, Texts
from server.http.api.hf_similarity import Sentences, compare_sentences, is_comparison
from server.http.api.statuses import find_status
from server.http.body import explain_error, parse_body
from server.http.call import Call, Reply, reply_json
from server.http.endpoint import TextJob, check_places, run_job, run_located
from server.http.replies import INLINE_ITEMS, INLINE_NUMBERS, write_reply
from server.http.route import Route, Shape
from server.http.state import ServedModel, ServerState
from server.tasks import classify, embed, token_classify, zero_shot
from server.tasks.task import Task
from server.text.inputs import Text
from server.text.located import Window
from server.text.prompts import choose_prompt, find_default
from server.text.work import Truncation
from server.wire.job import Ragged

MAX_LABELS = 1024
ITEMS_PER_TOKEN = 32
"""To find entities takes about as long by token, 15 to 60 us."""

Labels = Annotated[list[Label], Field(fail_fast=True, max_length=MAX_LABELS)]
TextPair = Annotated[dict[Literal["text", "text_pair"], str], Field(min_length=2, max_length=2)]
"""A text and the one it is classified with."""
Schema = TypeVar("Schema", bound=BaseModel)


class FeatureExtraction(BaseModel):
    """Parameters for embedders."""

    normalize: StrictBool | None = None
    prompt_name: ModelName | None = None
    truncate: StrictBool | None = None
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"
    dimensions: Annotated[StrictInt, Field(ge=1, le=MAX_LIST)] | None = None
    encoding_format: Literal["float"] | None = None

    def choose_truncation(self, configured: Truncation) -> Truncation:
        """The request's word, else the server's."""
        if self.truncate is None:
            return configured
        direction: Truncation = "left" if self.truncation_direction.lower() == "left" else "right"
        return direction if self.truncate else "error"


class InferenceRequest(FeatureExtraction):
    """Body of `POST /models/{name}` and `POST /`; parameters of feature extraction may also stand beside `inputs`."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    inputs: Annotated[
        str | TextPair | Sentences | Texts | Annotated[list[TextPair], Field(fail_fast=True, max_length=MAX_LIST)],
        Field(
            union_mode="left_to_right",
            description="a text or a list of texts; for text classification also {text, text_pair} or a list of those; "
            "for embedders also {source_sentence, sentences}, which are compared",
        ),
    ]
    parameters: Options | None = Field(
        None,
        description="Of token classification: aggregation_strategy, ignore_labels, stride. Of text classification: "
        "top_k, function_to_apply. Of zero-shot classification: candidate_labels, multi_label, hypothesis_template. "
        "Of feature extraction: those that may also stand beside inputs.",
    )
    options: Options | None = Field(None, description="Understood, and of no effect.")
    model: ModelName | None = Field(None, description="For `POST /`, where several models are served.")

    def list_texts(self) -> list[str]:
        """Raises InvalidField where there are pairs."""
        texts = [self.inputs] if isinstance(self.inputs, str) else self.inputs
        if isinstance(texts, dict) or any(not isinstance(text, str) for text in texts):
            raise InvalidField("inputs must be a text or a list of texts for this model", param="inputs")
        return list(texts)  # type: ignore[arg-type]

    def list_inputs(self) -> list[Text]:
        """Texts and pairs. Raises InvalidField where there are sentences to compare."""
        if is_comparison(self.inputs):
            raise InvalidField("inputs with source_sentence and sentences are for embedders", param="inputs")
        items: list[Any] = [self.inputs] if isinstance(self.inputs, str | dict) else self.inputs
        return [item if isinstance(item, str) else (item["text"], item["text_pair"]) for item in items]

    def unwrap(self, answers: list[Any]) -> Any:
        """What a client gets that has not sent a list."""
        return answers if isinstance(self.inputs, list) else answers[0]


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


class HfErrorReply(TypedDict):
    """Of every route here."""

    error: str


async def infer(call: Call, state: ServerState) -> Reply:
    """For a client that was given the server's own address."""
    asked = parse_body(InferenceRequest, call.take_body())
    return await serve(call, state.pick_model(asked.model, None), asked)


async def infer_with_model(call: Call, state: ServerState) -> Reply:
    asked = parse_body(InferenceRequest, call.take_body())
    return await serve(call, state.find_model(call.rest), asked)


async def serve(call: Call, model: ServedModel, asked: InferenceRequest) -> Reply:
    """Raises WrongTask where the model does none of what can be asked for here."""
    call.model = model.name
    for head in model.heads:
        for task, answer in ANSWERS:
            if task.can_use(head.info):
                return await answer(call, head, asked)
    model.pick_head(ANSWERS[0][0])
    raise AssertionError("The model can do what it was refused for. This is a bug.")


def read_parameters(schema: type[Schema], given: dict[str, Any] | None) -> Schema:
    """What is null is not said. Raises InvalidField naming the parameter."""
    said = {name: value for name, value in (given or {}).items() if value is not None}
    try:
        return schema.model_validate(said)
    except ValidationError as error:
        raise explain_error(schema, error, b"") from None


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
    reader = token_classify.Reader(
        model.info, model.tokenizer, wanted.aggregation_strategy, frozenset(wanted.ignore_labels)
    )
    write = partial(write_entities, reader, windows, arrays["token_logits"], asked)
    return await write_reply(write, call.times.num_tokens * ITEMS_PER_TOKEN, INLINE_ITEMS, model)


def write_entities(
    reader: token_classify.Reader, windows: list[list[Window]], logits: Ragged, asked: InferenceRequest
) -> bytes:
    rows = (logits.row(index) for index in range(len(logits)))
    answers = [reader.read(each, list(islice(rows, len(each)))) for each in windows]
    return orjson.dumps(asked.unwrap(answers))


async def classify_texts(call: Call, model: ServedModel, asked: InferenceRequest) -> Reply:
    """Labels of each input, always as a list of lists: the client takes the first of a single text's."""
    if "candidate_labels" in (asked.parameters or {}):
        return await classify_without_training(call, model, asked)
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


async def extract_features(call: Call, model: ServedModel, asked: InferenceRequest) -> Reply:
    """A vector of each text, always as a list, or cosines. The client's parameters stand beside `inputs`."""
    beside = {name: getattr(asked, name) for name in FeatureExtraction.model_fields}
    wanted = read_parameters(FeatureExtraction, beside | (asked.parameters or {}))
    embed.check_dimensions(wanted.dimensions, model.info)
    if model.info.normalize and wanted.normalize is False:
        raise InvalidField("normalize must not be false: this model's vectors have length 1", param="normalize")
    prompt = choose_prompt(model.info, name=wanted.prompt_name)
    truncation = wanted.choose_truncation(model.config.limits.truncation)
    if is_comparison(asked.inputs):
        return await compare_sentences(call, model, asked.inputs, prompt, truncation)
    job = TextJob(
        embed.TASK,
        asked.list_texts(),
        "inputs",
        embed.EmbedParams(wanted.dimensions),
        prompt=prompt,
        truncation=truncation,
    )
    rows = (await run_job(call, model, job))["embeddings"].values
    if wanted.normalize:
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    write = partial(orjson.dumps, np.ascontiguousarray(rows), option=orjson.OPT_SERIALIZE_NUMPY)
    return await write_reply(write, rows.size, INLINE_NUMBERS, model)


Answer = Callable[[Call, ServedModel, InferenceRequest], Awaitable[Reply]]
ANSWERS: tuple[tuple[Task, Answer], ...] = (
    (token_classify.TASK, classify_tokens),
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


InferenceReply = (
    list[EntityReply]
    | list[list[EntityReply]]
    | list[LabelReply]
    | list[list[LabelReply]]
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
