"""OpenAI's completions: text goes on where the prompt ends."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import Field, StrictBool, StrictInt

from server.errors import InvalidField
from server.http.api.generation_fields import MAX_LOGPROBS, GenerationFields, Texts, TokenIds
from server.http.api.generation_params import build_params, build_rules
from server.http.api.logprobs import format_lists
from server.http.api.openai_embeddings import list_inputs
from server.http.api.openai_generation import Answer, Choice, Envelope, answer_generation
from server.http.body import parse_body
from server.http.endpoint import LeanRoute, describe_request
from server.http.events import EventWriter, GeneratedResponse
from server.http.generation_pipeline import GenerationOrder, TextGeneration, begin_generation
from server.http.pipeline import HttpCall, check_count
from server.http.state import ServedModel, ServerState
from server.text.detokenizer import Detokenizer, TokenTexts
from server.text.text_stream import Delta, TokenNews
from server.text.tokenizer import Input, count_chars
from server.wire.job import TokenLogprob

router = APIRouter(route_class=LeanRoute, tags=["openai"])

DEFAULT_MAX_TOKENS = 16


class CompletionRequest(GenerationFields):
    """Body of `POST /v1/completions`."""

    prompt: Annotated[
        str | Texts | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)],
        Field(
            union_mode="left_to_right",
            description="a text, a list of texts, a list of token ids, or a list of lists of token ids",
        ),
    ]
    echo: StrictBool | None = Field(None, description="The choices begin with the prompt.")
    logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description="Logprobs of the tokens, and of so many most probable ones; with echo the prompt's as well."
    )
    suffix: str | None = None


@router.post(
    "/v1/completions",
    summary="Complete texts or token ids",
    openapi_extra=describe_request(CompletionRequest.model_json_schema()),
)
async def create_completion(request: Request) -> Response:
    return GeneratedResponse(request, route="/v1/completions", work=complete)


async def complete(call: HttpCall, state: ServerState, body: bytes, writer: EventWriter) -> bytes:
    """One call from body to body, or to events."""
    asked = parse_body(CompletionRequest, body)
    model = state.find_model(asked.model)
    call.model = model.name
    model.check_task("generate")
    inputs = list_inputs(asked.prompt)
    order = build_order(asked, model, inputs)
    metrics = state.metrics.bind_tokens(route=call.route, model=model.name)
    async with begin_generation(call, model, order, metrics) as generation:
        echoes = [Echo()] * len(inputs)
        if asked.echo:
            echoes = await model.tokenizer.run(
                partial(build_echoes, inputs, generation, model.tokenizer.texts, order.rules.skip_special_tokens)
            )
        choices = CompletionChoices(asked, model, generation, echoes)
        envelope = Envelope("cmpl", "text_completion", model.name)
        return await answer_generation(generation, asked, choices, envelope, writer)


def build_order(asked: CompletionRequest, model: ServedModel, inputs: list[Input]) -> GenerationOrder:
    """Raises InvalidField and its kinds."""
    check_count(inputs, model, "prompt")
    if asked.suffix:
        raise InvalidField(
            "suffix is not supported: models here only go on from the prompt; leave it out", param="suffix"
        )
    if asked.max_tokens == 0 and not asked.echo:
        raise InvalidField(
            "max_tokens is 0; ask for at least 1, or set echo to true for the prompt alone", param="max_tokens"
        )
    num_logprobs = -1 if asked.logprobs is None else asked.logprobs
    return GenerationOrder(
        field="prompt",
        num_prompts=len(inputs),
        num_chars=count_chars(inputs),
        num_ids=sum(len(item) for item in inputs if isinstance(item, list)),
        encode=partial(model.tokenizer.encode, inputs, truncation="error", field="prompt"),
        params=build_params(
            asked, model, num_logprobs=num_logprobs, num_prompt_logprobs=num_logprobs if asked.echo else -1
        ),
        max_tokens=asked.max_tokens,
        default_max_tokens=DEFAULT_MAX_TOKENS,
        seed=asked.seed,
        bad_words=tuple(asked.bad_words or ()),
        rules=build_rules(asked, model),
    )


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
    """Writes choices. Mutable: which of them have begun in a stream."""

    def __init__(
        self, asked: CompletionRequest, model: ServedModel, generation: TextGeneration, echoes: list[Echo]
    ) -> None:
        self._texts = model.tokenizer.texts
        self._has_logprobs = asked.logprobs is not None
        self._has_token_ids = bool(asked.return_token_ids) or not model.tokenizer.knows_texts
        self._has_echo = bool(asked.echo)
        self._num_answers = asked.num_answers
        self._generation = generation
        self._echoes = echoes
        self._begun: set[int] = set()

    def list_chunks(self, delta: Delta) -> list[Choice]:
        place = delta.index // self._num_answers
        echo = self._echoes[place]
        chunks = []
        if self._has_echo and delta.index not in self._begun:
            self._begun.add(delta.index)
            chunks.append(self._build(delta.index, echo.text, self._list_echoed(place), (), ""))
        says_nothing = not (delta.text or delta.finish_reason or self._has_logprobs or self._has_token_ids)
        if not says_nothing:
            chunks.append(self._build(delta.index, delta.text, [], delta.tokens, delta.finish_reason))
        return chunks

    def describe(self, index: int, answer: Answer) -> Choice:
        place = index // self._num_answers
        text = self._echoes[place].text + answer.text
        return self._build(index, text, self._list_echoed(place), answer.tokens, answer.finish_reason)

    def _list_echoed(self, place: int) -> list[TokenNews]:
        return self._echoes[place].list_tokens(self._generation.prompt_logprobs[place])

    def _build(
        self, index: int, text: str, echoed: list[TokenNews], tokens: list[TokenNews] | tuple[TokenNews, ...], end: str
    ) -> Choice:
        choice: Choice = {"index": index, "text": text, "logprobs": None, "finish_reason": end or None}
        if self._has_logprobs:
            first_offset = len(self._echoes[index // self._num_answers].text)
            before = format_lists(echoed, self._texts)
            after = format_lists(tokens, self._texts, first_offset=first_offset)
            choice["logprobs"] = {key: before[key] + after[key] for key in after}
        if self._has_token_ids:
            choice["token_ids"] = [token.token_id for token in tokens]
        return choice
