"""Generated answers as bodies or as chunks: what completions and chat do alike around their different choices."""

import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from time import time
from typing import Any, Protocol

import orjson

from server.errors import Unservable
from server.http.answers import Answer, collect_answers
from server.http.api.generation_fields import GenerationFields
from server.http.call import Call, Reply
from server.http.endpoint import OpenJob, TextJob
from server.http.events import DONE, EventStream
from server.http.state import ServedModel, ServerState
from server.http.text_generation import TextGeneration
from server.text.text_stream import Delta, TextRules

Choice = dict[str, Any]
INLINE_TOKENS = 100
"""So many with logprobs are written on the event loop's thread. A chat's token with 20 others takes 0.08 ms."""


class Choices(Protocol):
    """How a protocol writes choices."""

    def tells(self, delta: Delta) -> bool:
        """Whether there is anything in these news for the client."""

    async def list_chunks(self, delta: Delta) -> list[Choice]:
        """The choices of the chunks, one each, that tell these news."""

    def describe(self, index: int, answer: Answer) -> Choice:
        """`index`: the client's count, not the engine's."""


class Envelope:
    """What is the same in all chunks of an answer. The id tells answers apart; `kind` is OpenAI's `object`."""

    def __init__(self, prefix: str, kind: str, model: str) -> None:
        self._fields = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time()),
            "model": model,
        }

    def wrap(self, choices: Sequence[Choice | orjson.Fragment], **more: Any) -> bytes:
        return orjson.dumps(self._fields | {"choices": choices} | more)


MakeChoices = Callable[[TextGeneration], Awaitable[Choices]]


async def generate(
    call: Call,
    state: ServerState,
    model: ServedModel,
    asked: GenerationFields,
    job: TextJob,
    *,
    rules: TextRules,
    make_choices: MakeChoices,
    envelope: Envelope,
) -> Reply | None:
    """The answer, or None where it has been streamed. Raises ServiceError's kinds, naming the fields of the body."""
    metrics = state.metrics.bind_tokens(route=call.path, model=model.name)
    with naming_fields(asked):
        async with OpenJob(call, model, job) as opened:
            generation = TextGeneration(call, opened, rules, metrics)
            try:
                choices = await make_choices(generation)
                if asked.stream:
                    async with EventStream(call, state.config.server.sse_ping_s) as events:
                        await write_chunks(events, generation, choices, envelope, has_usage=asked.has_usage_chunk)
                    return None
                answers = choose_best(await collect_answers(generation), generation.num_per_prompt, asked.num_answers)
            finally:
                generation.finish()
        write = partial(write_answers, answers, choices, envelope, describe_usage(generation))
        return Reply(write() if is_quick(opened, generation) else await model.tokenizer.run(write))


@contextmanager
def naming_fields(asked: GenerationFields) -> Iterator[None]:
    """What the engine calls a parameter, clients know by the field that they have sent."""
    try:
        yield
    except Unservable as error:
        field = name_field(asked, error.param)
        raise Unservable(f"{field}: {error.message}" if field else error.message, field) from error


def name_field(asked: GenerationFields, param: str | None) -> str | None:
    """Of several fields that set a parameter the one that the request has, else the last."""
    names = {
        "grammar": ("regex", "response_format"),
        "num_sequences": ("best_of", "n"),
        "beam_width": ("beam_width", "best_of", "n"),
        "max_tokens": ("max_completion_tokens", "max_tokens"),
    }.get(param or "")
    if names is None:
        return param
    return next((name for name in names if getattr(asked, name, None) is not None), names[-1])


async def write_chunks(
    events: EventStream, generation: TextGeneration, choices: Choices, envelope: Envelope, *, has_usage: bool
) -> None:
    """Every step's news as they come."""
    more = {"usage": None} if has_usage else {}
    async with aclosing(generation.read()) as news:
        async for deltas in news:
            chunks: list[bytes] = []
            for delta in deltas:
                if choices.tells(delta):
                    # Before anything is waited for: meanwhile a sibling could take over and begin anew.
                    generation.note_told(delta.index)
                    chunks += [envelope.wrap([choice], **more) for choice in await choices.list_chunks(delta)]
            if chunks:
                await events.write(*chunks)
    last = [envelope.wrap([], usage=describe_usage(generation))] if has_usage else []
    await events.write(*last, DONE)
    await events.end()


def is_quick(opened: OpenJob, generation: TextGeneration) -> bool:
    """Whether the answers are written at once: many tokens with their logprobs would hold everybody up for seconds."""
    num_tokens, params = generation.num_generated_tokens, opened.params
    if params.num_prompt_logprobs >= 0:
        num_tokens += generation.num_per_prompt * sum(len(prompt) for prompt in generation.prompts)
    return params.num_logprobs < 0 or num_tokens <= INLINE_TOKENS


def write_answers(answers: Sequence[Answer], choices: Choices, envelope: Envelope, usage: dict[str, Any]) -> bytes:
    """One by one: between two of them others have their turn at the GIL."""
    written = [orjson.Fragment(orjson.dumps(choices.describe(index, answer))) for index, answer in enumerate(answers)]
    return envelope.wrap(written, usage=usage)


def choose_best(answers: Sequence[Answer], num_per_prompt: int, num_wanted: int) -> list[Answer]:
    """Of each prompt's answers those with the highest logprob per token, if there are more than are wanted."""
    if num_per_prompt == num_wanted:
        return list(answers)
    best: list[Answer] = []
    for begin in range(0, len(answers), num_per_prompt):
        ranked = sorted(answers[begin : begin + num_per_prompt], key=lambda answer: -answer.mean_logprob)
        best += ranked[:num_wanted]
    return best


def describe_usage(generation: TextGeneration) -> dict[str, Any]:
    """Each prompt counts once, whatever n; generated tokens all count, also those that best_of left out."""
    num_prompt_tokens = generation.num_prompt_tokens
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": generation.num_generated_tokens,
        "total_tokens": num_prompt_tokens + generation.num_generated_tokens,
        "prompt_tokens_details": {"cached_tokens": generation.num_cached_tokens},
    }
