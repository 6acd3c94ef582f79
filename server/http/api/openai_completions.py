"""OpenAI's completions: text goes on where the prompt ends, or is written for it where a model reads and writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import orjson
from pydantic import Field, StrictBool, StrictInt

from server.errors import InvalidField
from server.http.answers import Answer
from server.http.api.fields import Label, Texts, TokenIds, TokenLists, list_inputs
from server.http.api.generation_fields import MAX_LOGPROBS, GenerationFields
from server.http.api.generation_params import build_params, build_rules
from server.http.api.logprobs import format_lists
from server.http.api.openai_errors import render_error
from server.http.api.openai_generation import INLINE_TOKENS, Choice, Choices, Envelope, generate
from server.http.api.openai_schemas import EVENT_STREAM, CompletionReply, ErrorReply
from server.http.api.openai_sources import build_job_of_sources, instruct
from server.http.body import parse_body
from server.http.call import Call, Reply
from server.http.endpoint import TextJob
from server.http.route import Route
from server.http.state import ServedModel, ServerState
from server.http.text_generation import TextGeneration
from server.tasks import text2text
from server.tasks.generate import TASK, GenerationWish
from server.text.detokenizer import Detokenizer, TokenTexts
from server.text.inputs import Input
from server.text.text_stream import Delta, TokenNews
from server.wire.generation import TokenLogprob

DEFAULT_MAX_TOKENS = 16


class CompletionRequest(GenerationFields):
    """Body of `POST /v1/completions`."""

    prompt: Annotated[
        str | Texts | TokenIds | TokenLists,
        Field(
            union_mode="left_to_right",
            description="a text, a list of texts, a list of token ids, or a list of lists of token ids",
        ),
    ]
    echo: StrictBool | None = Field(None, description="The choices begin with the prompt.")
    logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description="Logprobs of the tokens, and of so many most probable ones; with echo the prompt's as well."
    )
    suffix: Label | None = None
    source_language: Label | None = Field(None, description="Of translators, as /v1/translate has it.")
    target_language: Label | None = None


async def create_completion(call: Call, state: ServerState) -> Reply | None:
    asked = parse_body(CompletionRequest, call.take_body())
    model = state.pick_model(asked.model, TASK, text2text.TASK)
    call.model = model.name
    inputs = list_inputs(asked.prompt)
    job, rules = build_job(asked, model, inputs), build_rules(asked, model)

    async def make_choices(generation: TextGeneration) -> Choices:
        echoes = [Echo()] * len(inputs)
        if asked.echo:
            texts = model.tokenizer.texts
            echoes = await model.tokenizer.run(
                partial(build_echoes, inputs, generation, texts, rules.skip_special_tokens)
            )
        return CompletionChoices(asked, model, generation, echoes)

    return await generate(
        *(call, state, model, asked, job),
        rules=rules,
        make_choices=make_choices,
        envelope=Envelope("cmpl", "text_completion", model.name),
    )


def build_job(asked: CompletionRequest, model: ServedModel, inputs: Sequence[Input]) -> TextJob:
    """Raises InvalidField and its kinds."""
    if asked.suffix:
        raise InvalidField(
            "suffix is not supported: models here only go on from the prompt; leave it out", param="suffix"
        )
    if asked.max_tokens == 0 and not asked.echo:
        raise InvalidField(
            "max_tokens is 0; ask for at least 1, or set echo to true for the prompt alone", param="max_tokens"
        )
    num_logprobs = -1 if asked.logprobs is None else asked.logprobs
    if text2text.TASK.can_use(model.info):
        if asked.echo:
            raise InvalidField("echo is for models that go on from the prompt; leave it out", param="echo")
        given = instruct(model, inputs, asked.source_language, asked.target_language)
        return build_job_of_sources(asked, model, inputs, given, num_logprobs)
    check_no_languages(asked)
    params = build_params(
        asked, model, num_logprobs=num_logprobs, num_prompt_logprobs=num_logprobs if asked.echo else -1
    )
    bad_words = tuple(asked.bad_words or ())
    wish = GenerationWish(params, asked.max_tokens, DEFAULT_MAX_TOKENS, bad_words, asked.min_tokens or 0)
    return TextJob(
        TASK,
        inputs,
        "prompt",
        settle=partial(wish.settle, tokenizer=model.tokenizer, field="prompt"),
        num_answers=params.num_sequences,
        num_sequences=params.num_rows,
        num_answer_tokens=wish.most_tokens,
        priority=asked.priority or 0,
    )


def check_no_languages(asked: CompletionRequest) -> None:
    """Raises InvalidField."""
    for name in ("source_language", "target_language"):
        if getattr(asked, name) is not None:
            raise InvalidField(f"{name} is for translators, and this model is none; leave it out", param=name)


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt as its choices repeat it: the text, and for each token its id and where it begins."""

    text: str = ""
    places: tuple[tuple[int, int], ...] = ()

    def list_tokens(self, logprobs: tuple[TokenLogprob, ...]) -> list[TokenNews]:
        """`logprobs` are of the tokens from the second on."""
        return [
            TokenNews(token_id, offset, logprob)
            for (token_id, offset), logprob in zip(self.places, (None, *logprobs), strict=False)
        ]


def build_echoes(
    inputs: list[Input], generation: TextGeneration, texts: TokenTexts, skip_special_tokens: bool
) -> list[Echo]:
    """A text comes back as it was sent; for token ids it is what they stand for."""
    echoes = []
    for item, prompt in zip(inputs, generation.prompts, strict=True):
        detokenizer = Detokenizer(texts, skip_special_tokens=skip_special_tokens)
        parts, places, offset = [], [], 0
        for token_id in prompt.tolist():
            places.append((token_id, offset))
            parts.append(detokenizer.push(token_id))
            offset += len(parts[-1])
        echoes.append(Echo(item if isinstance(item, str) else "".join(parts), tuple(places)))
    return echoes


class CompletionChoices:
    """Writes choices. Mutable: which of them have begun in a stream, and what is the same in all of a prompt's."""

    def __init__(
        self, asked: CompletionRequest, model: ServedModel, generation: TextGeneration, echoes: list[Echo]
    ) -> None:
        self._tokenizer, self._texts = model.tokenizer, model.tokenizer.texts
        self._has_logprobs = asked.logprobs is not None
        self._has_token_ids = bool(asked.return_token_ids) or not model.tokenizer.knows_texts
        self._has_echo = bool(asked.echo)
        self._num_answers = asked.num_answers
        self._generation = generation
        self._echoes = echoes
        self._begun: set[int] = set()
        self._echoed: dict[int, dict[str, Any]] = {}
        self._written: dict[int, dict[str, orjson.Fragment]] = {}

    def tells(self, delta: Delta) -> bool:
        return self._repeats_prompt(delta) or self._has_news(delta)

    def _repeats_prompt(self, delta: Delta) -> bool:
        return self._has_echo and delta.index not in self._begun

    def _has_news(self, delta: Delta) -> bool:
        return bool(delta.text or delta.finish_reason or self._has_logprobs or self._has_token_ids)

    async def list_chunks(self, delta: Delta) -> list[Choice]:
        chunks = []
        if self._repeats_prompt(delta):
            self._begun.add(delta.index)
            echo = await self._write_echo(delta.index // self._num_answers)
            chunks.append(self._build(delta.index, "", (), "", has_echo=False) | echo)
        if self._has_news(delta):
            chunks.append(self._build(delta.index, delta.text, delta.tokens, delta.finish_reason, has_echo=False))
        return chunks

    def describe(self, index: int, answer: Answer) -> Choice:
        text = self._echoes[index // self._num_answers].text + answer.text
        return self._build(index, text, answer.tokens, answer.finish_reason, has_echo=self._has_echo)

    def _build(self, index: int, text: str, tokens: Sequence[TokenNews], end: str, *, has_echo: bool) -> Choice:
        choice: Choice = {"index": index, "text": text, "logprobs": None, "finish_reason": end or None}
        if self._has_logprobs:
            place = index // self._num_answers
            lists = format_lists(tokens, self._texts, first_offset=len(self._echoes[place].text))
            if has_echo:
                echoed = self._format_echo(place)
                lists = {key: echoed[key] + lists[key] for key in lists}
            choice["logprobs"] = lists
        if self._has_token_ids:
            choice["token_ids"] = [token.token_id for token in tokens]
        return choice

    async def _write_echo(self, place: int) -> dict[str, orjson.Fragment]:
        """What the first chunks of all answers to a prompt have in place of their own."""
        if place not in self._written:
            echo = self._echoes[place]
            is_quick = not self._has_logprobs or len(echo.places) <= INLINE_TOKENS
            written = self._dump_echo(place) if is_quick else await self._tokenizer.run(partial(self._dump_echo, place))
            self._written[place] = written
        return self._written[place]

    def _dump_echo(self, place: int) -> dict[str, orjson.Fragment]:
        fields: Choice = {"text": self._echoes[place].text}
        if self._has_logprobs:
            fields["logprobs"] = self._format_echo(place)
        return {name: orjson.Fragment(orjson.dumps(value)) for name, value in fields.items()}

    def _format_echo(self, place: int) -> dict[str, Any]:
        if place not in self._echoed:
            tokens = self._echoes[place].list_tokens(self._generation.prompt_logprobs[place])
            self._echoed[place] = format_lists(tokens, self._texts)
        return self._echoed[place]


ROUTES = (
    Route(
        "POST",
        "/v1/completions",
        create_completion,
        render_error,
        "Complete texts or token ids",
        "openai",
        schema=CompletionRequest.model_json_schema(),
        reply=CompletionReply,
        other_replies=EVENT_STREAM,
        error_reply=ErrorReply,
        deadline="generation",
    ),
)
