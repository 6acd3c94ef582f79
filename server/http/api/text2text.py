"""Translations and summaries: texts go through an encoder-decoder, sentence by sentence where that is wanted, and come
back as texts. The protocol is ours; errors have OpenAI's shape."""

from collections.abc import Sequence
from contextlib import aclosing
from typing import Annotated, Literal, NotRequired

import orjson
from pydantic import Field, StrictBool
from typing_extensions import TypedDict

from server.errors import EmptyInput, InvalidField
from server.http.api.fields import Label, Texts
from server.http.api.openai_errors import render_error
from server.http.api.openai_schemas import EVENT_STREAM, ErrorReply, FinishReason
from server.http.api.text2text_fields import DecodingFields
from server.http.body import parse_body
from server.http.call import Call, Reply, reply_json
from server.http.endpoint import check_places
from server.http.events import DONE, EventStream
from server.http.route import Route
from server.http.state import ServedModel, ServerState
from server.http.writing import Writing, Written, open_writing, write_texts
from server.http.writing_stream import Piece, read_pieces
from server.tasks.text2text import TASK, find_summary_prefix
from server.text.languages import Instruction, Languages
from server.text.sentences import keep_whole, split_text
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


class WrittenReply(TypedDict):
    """`score`: of a beam search, the sum of logprobs divided by length ** length_penalty."""

    text: str
    finish_reason: FinishReason
    score: NotRequired[float]


class Translation(WrittenReply):
    """The best answer to a text, and the next best ones where several were asked for."""

    index: int
    alternatives: NotRequired[list[WrittenReply]]


class Text2TextUsage(TypedDict):
    source_tokens: int
    completion_tokens: int
    total_tokens: int


class WrittenChunk(TypedDict):
    """An event: what comes next of the answer to text number `index`. `finish_reason`: once that is all of it."""

    object: Literal["chunk"]
    model: str
    index: int
    text: str
    finish_reason: FinishReason | None


class LastChunk(TypedDict):
    object: Literal["chunk"]
    model: str
    usage: Text2TextUsage


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


def pick_writer(call: Call, state: ServerState, name: str | None) -> tuple[ServedModel, Languages]:
    """And what it knows of languages. Raises UnknownModel, InvalidField, WrongTask."""
    model = state.pick_model(name, TASK)
    call.model = model.name
    assert model.languages is not None, "Every encoder-decoder of texts has them. This is a bug."
    return model, model.languages


async def translate_texts(call: Call, state: ServerState) -> Reply | None:
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
    writing = Writing(splits, asked.wish(), instruction, "text", priority=asked.priority or 0)
    if asked.stream:
        await stream_answers(call, state, model, writing)
        return None
    written, usage = await write_answers(call, state, model, writing)
    return reply_json(TranslateReply(object="list", model=model.name, translations=written, usage=usage))


async def summarize_texts(call: Call, state: ServerState) -> Reply | None:
    asked = parse_body(SummarizeRequest, call.take_body())
    model, languages = pick_writer(call, state, asked.model)
    splits = [keep_whole(text) for text in list_texts(asked.text)]
    configured = model.config.limits.truncation
    truncation: Truncation = configured if asked.truncate is None else "right" if asked.truncate else "error"
    instruction = Instruction(prefix=find_summary_prefix(languages.info))
    writing = Writing(splits, asked.wish(), instruction, "text", truncation, asked.priority or 0)
    if asked.stream:
        await stream_answers(call, state, model, writing)
        return None
    written, usage = await write_answers(call, state, model, writing)
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
    written = await write_texts(call, state, model, writing)
    usage = count_usage(written.num_source_tokens, written.num_written_tokens)
    return [format_answers(index, answers) for index, answers in enumerate(written.answers)], usage


def count_usage(num_source_tokens: int, num_written_tokens: int) -> Text2TextUsage:
    return Text2TextUsage(
        source_tokens=num_source_tokens,
        completion_tokens=num_written_tokens,
        total_tokens=num_source_tokens + num_written_tokens,
    )


async def stream_answers(call: Call, state: ServerState, model: ServedModel, writing: Writing) -> None:
    """Each sentence once it and those before it are there. Raises ServiceError's kinds."""
    if writing.wish.num_answers > 1:
        raise InvalidField(
            "stream tells one answer to each text, and n asks for more; leave one of them out", param="stream"
        )
    async with (
        open_writing(call, state, model, writing) as generation,
        EventStream(call, state.config.server.sse_ping_s) as events,
    ):
        async with aclosing(read_pieces(model, writing.splits, generation)) as news:
            async for pieces in news:
                await events.write(*(orjson.dumps(format_piece(model.name, piece)) for piece in pieces))
        usage = count_usage(generation.num_prompt_tokens, generation.num_generated_tokens)
        await events.write(orjson.dumps(LastChunk(object="chunk", model=model.name, usage=usage)), DONE)
        await events.end()


def format_piece(model: str, piece: Piece) -> WrittenChunk:
    reason: FinishReason = "length" if piece.is_cut else "stop"
    return WrittenChunk(
        object="chunk", model=model, index=piece.index, text=piece.text, finish_reason=reason if piece.is_last else None
    )


def format_answers(index: int, answers: Sequence[Written]) -> Translation:
    best, *others = map(format_answer, answers)
    translation = Translation(index=index, text=best["text"], finish_reason=best["finish_reason"])
    if "score" in best:
        translation["score"] = best["score"]
    if others:
        translation["alternatives"] = others
    return translation


def format_answer(written: Written) -> WrittenReply:
    reply = WrittenReply(text=written.text, finish_reason="length" if written.is_cut else "stop")
    if written.score is not None:
        reply["score"] = written.score
    return reply


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
        other_replies=EVENT_STREAM,
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
        other_replies=EVENT_STREAM,
        error_reply=ErrorReply,
        deadline="generation",
    ),
)
