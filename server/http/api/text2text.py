"""Translations and summaries: texts go through an encoder-decoder, sentence by sentence where that is wanted, and come
back as texts. The protocol is ours; errors have OpenAI's shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, NotRequired

from pydantic import Field, StrictBool
from typing_extensions import TypedDict

from server.errors import EmptyInput, InvalidField
from server.http.answers import Answer, collect_answers
from server.http.api.fields import Label, Texts
from server.http.api.openai_errors import render_error
from server.http.api.openai_schemas import ErrorReply, FinishReason
from server.http.api.text2text_fields import DecodingFields
from server.http.body import parse_body
from server.http.call import Call, Reply, reply_json
from server.http.endpoint import OpenJob, TextJob, check_places
from server.http.route import Route
from server.http.state import ServedModel, ServerState
from server.http.text_generation import TextGeneration
from server.tasks.text2text import TASK, begin_answer, find_summary_prefix, settle_params
from server.text.detokenizer import TokenTexts
from server.text.languages import Instruction, Languages, as_tokens
from server.text.prompts import Prompt
from server.text.sentences import SplitText, keep_whole, split_text
from server.text.text_stream import TextRules
from server.text.work import Truncation

OneOrMore = Annotated[str | Texts, Field(union_mode="left_to_right", description="a text, or a list of texts")]


class TranslateRequest(DecodingFields):
    """Body of `POST /v1/translate`."""

    text: OneOrMore = Field(examples=["How are you?"])
    source_language: Label | None = Field(None, description="As the model writes it, or the beginning of that.")
    target_language: Label | None = None
    split_sentences: StrictBool | None = Field(
        None, description="Sentence by sentence, as translators were trained; if absent, where one answer is wanted."
    )


class SummarizeRequest(DecodingFields):
    """Body of `POST /v1/summarize`."""

    text: OneOrMore = Field(examples=["A long report about wheat. It was a good year."])
    truncate: StrictBool | None = Field(None, description="What is too long is cut at its end, else refused.")


class Written(TypedDict):
    """`score`: of a beam search, the sum of logprobs divided by length ** length_penalty."""

    text: str
    finish_reason: FinishReason
    score: NotRequired[float]


class Translation(Written):
    """The best answer to a text, and the next best ones where several were asked for."""

    index: int
    alternatives: NotRequired[list[Written]]


class Text2TextUsage(TypedDict):
    source_tokens: int
    completion_tokens: int
    total_tokens: int


class TranslateReply(TypedDict):
    object: Literal["list"]
    model: str
    translations: list[Translation]
    usage: Text2TextUsage


class SummarizeReply(TypedDict):
    object: Literal["list"]
    model: str
    summaries: list[Translation]
    usage: Text2TextUsage


@dataclass(frozen=True, slots=True)
class Writing:
    """What is to be written, for which sentences of which texts."""

    splits: Sequence[SplitText]
    asked: DecodingFields
    instruction: Instruction
    truncation: Truncation = "error"

    def build_job(self, model: ServedModel) -> TextJob:
        """Raises InvalidField."""
        asked, given = self.asked, self.instruction
        sentences = [sentence for split in self.splits for sentence in split.sentences]
        params = settle_params(model.info, asked.wish(given.forced_begin))
        opening = begin_answer(model.info) if given.opening is None else as_tokens(given.opening)
        return TextJob(
            TASK,
            sentences,
            "text",
            params,
            prompt=Prompt(given.prefix),
            around=given.around,
            truncation=self.truncation,
            openings=[opening] * len(sentences),
            num_answers=params.num_sequences,
            num_sequences=params.num_rows,
            num_answer_tokens=params.max_tokens,
            priority=asked.priority or 0,
        )


def pick_writer(call: Call, state: ServerState, name: str | None) -> tuple[ServedModel, Languages]:
    """And what it knows of languages. Raises UnknownModel, InvalidField, WrongTask."""
    model = state.pick_model(name, TASK)
    call.model = model.name
    assert model.languages is not None, "Every encoder-decoder of texts has them. This is a bug."
    return model, model.languages


async def translate_texts(call: Call, state: ServerState) -> Reply:
    asked = parse_body(TranslateRequest, call.take_body())
    model, languages = pick_writer(call, state, asked.model)
    instruction = languages.instruct(asked.source_language, asked.target_language)
    if asked.split_sentences and asked.num_answers > 1:
        raise InvalidField(
            "split_sentences gives one answer to a text, and n asks for more; leave one of them out",
            param="split_sentences",
        )
    texts = list_texts(asked.text)
    check_places(len(texts), model, "text")
    is_split = asked.num_answers == 1 if asked.split_sentences is None else asked.split_sentences
    if is_split:
        language = (asked.source_language or languages.info.source_language or "en").strip("_").split("_")[0]
        splits = await model.tokenizer.run(lambda: [split_text(text, language) for text in texts])
    else:
        splits = [keep_whole(text) for text in texts]
    written, usage = await write_answers(call, state, model, Writing(splits, asked, instruction))
    return reply_json(TranslateReply(object="list", model=model.name, translations=written, usage=usage))


async def summarize_texts(call: Call, state: ServerState) -> Reply:
    asked = parse_body(SummarizeRequest, call.take_body())
    model, languages = pick_writer(call, state, asked.model)
    splits = [keep_whole(text) for text in list_texts(asked.text)]
    configured = model.config.limits.truncation
    truncation: Truncation = configured if asked.truncate is None else "right" if asked.truncate else "error"
    instruction = Instruction(prefix=find_summary_prefix(languages.info))
    written, usage = await write_answers(call, state, model, Writing(splits, asked, instruction, truncation))
    return reply_json(SummarizeReply(object="list", model=model.name, summaries=written, usage=usage))


def list_texts(given: str | list[str]) -> list[str]:
    """Raises EmptyInput where one has nothing to be read."""
    texts = [given] if isinstance(given, str) else given
    for index, text in enumerate(texts):
        if not text.strip():
            raise EmptyInput(f"text[{index}] is empty; leave it out" if len(texts) > 1 else "text is empty", "text")
    return texts


async def write_answers(
    call: Call, state: ServerState, model: ServedModel, writing: Writing
) -> tuple[list[Translation], Text2TextUsage]:
    """One entry for each text. Raises ServiceError's kinds."""
    metrics = state.metrics.bind_tokens(route=call.path, model=model.name)
    async with OpenJob(call, model, writing.build_job(model)) as opened:
        generation = TextGeneration(call, opened, TextRules(stop_token_ids=model.info.eos_token_ids), metrics)
        try:
            answers = await collect_answers(generation)
        finally:
            generation.finish()
        texts = await model.tokenizer.run(partial(read_texts, model.tokenizer.texts, answers))
    num_source_tokens, num_written = opened.num_tokens, generation.num_generated_tokens
    usage = Text2TextUsage(
        source_tokens=num_source_tokens, completion_tokens=num_written, total_tokens=num_source_tokens + num_written
    )
    return join_answers(writing, answers, texts), usage


def read_texts(tokens: TokenTexts, answers: Sequence[Answer]) -> list[str]:
    """As the tokenizer's own decoder has whole texts, which streams can only come near to."""
    ids = [[token.token_id for token in answer.tokens] for answer in answers]
    return tokens.write(ids, skip_special_tokens=True)


def join_answers(writing: Writing, answers: Sequence[Answer], texts: Sequence[str]) -> list[Translation]:
    """Sentences become texts again; of a text that is one sentence, the best answer stands before the others."""
    num_answers, first = writing.asked.num_answers, 0
    joined: list[Translation] = []
    for index, split in enumerate(writing.splits):
        last = first + len(split.sentences) * num_answers
        places = range(first, last)
        groups = [[place] for place in places] if num_answers > 1 else [places]
        best, *others = [
            describe([answers[place] for place in group], split.join([texts[place] for place in group]))
            for group in groups
        ]
        translation = Translation(index=index, text=best["text"], finish_reason=best["finish_reason"])
        if "score" in best:
            translation["score"] = best["score"]
        if num_answers > 1:
            translation["alternatives"] = others
        joined.append(translation)
        first = last
    return joined


def describe(answers: Sequence[Answer], text: str) -> Written:
    """Of a text's sentences together: cut if one is, and as good as they are on average."""
    is_cut = any(answer.finish_reason == "length" for answer in answers)
    written = Written(text=text, finish_reason="length" if is_cut else "stop")
    scores = [answer.score for answer in answers if answer.score is not None]
    if scores and len(scores) == len(answers):
        written["score"] = sum(scores) / len(scores)
    return written


ROUTES = (
    Route(
        "POST",
        "/v1/translate",
        translate_texts,
        render_error,
        "Translate texts",
        "translate",
        schema=TranslateRequest.model_json_schema(),
        reply=TranslateReply,
        error_reply=ErrorReply,
        deadline="generation",
    ),
    Route(
        "POST",
        "/v1/summarize",
        summarize_texts,
        render_error,
        "Summarise texts",
        "translate",
        schema=SummarizeRequest.model_json_schema(),
        reply=SummarizeReply,
        error_reply=ErrorReply,
        deadline="generation",
    ),
)
