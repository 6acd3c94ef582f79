"""A generating call's way through the server: admit, tokenise, generate, and text as it comes. Knows no protocol.

The sibling of `server.http.pipeline`, whose calls come back in one piece.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from time import monotonic

from server.errors import InputTooLong, InvalidField
from server.http.pipeline import HttpCall, check_engine
from server.http.state import ServedModel
from server.metrics import TokenMetrics
from server.text.bad_words import encode_bad_words
from server.text.text_stream import Delta, TextRules, TextStream
from server.wire.job import GenerationEvent, GenerationParams, GenerationStream, TokenArray, TokenLogprob, TokenSequence


@dataclass(frozen=True, slots=True)
class GenerationOrder:
    """What one call wants. `params` but for what depends on the prompt: max_tokens, seed, bad_words."""

    field: str
    """The request's field the prompts came in, for error messages."""
    num_prompts: int
    num_chars: int
    """Of prompts that are text; 0 for token ids."""
    num_ids: int
    encode: Callable[[], Awaitable[list[TokenSequence]]]
    """Tokenises the prompts. Raises InvalidField and its kinds."""
    params: GenerationParams
    max_tokens: int | None
    default_max_tokens: int
    """As many as there is room for, where `max_tokens` is None and there is room for less."""
    seed: int | None
    """None: a new one for each prompt."""
    bad_words: tuple[str, ...]
    rules: TextRules

    @property
    def num_sequences(self) -> int:
        """Answers to all prompts."""
        return self.num_prompts * self.params.num_sequences


@asynccontextmanager
async def begin_generation(
    call: HttpCall, model: ServedModel, order: GenerationOrder, metrics: TokenMetrics
) -> AsyncIterator["TextGeneration"]:
    """Inside, the call has its place and its answers grow; leaving ends what has not ended by itself.

    Raises ApiError's kinds, EngineUnavailable, Unservable.
    """
    check_sequences(order, model)
    tokens_per_s = check_engine(model)
    estimator = model.admission.estimator
    num_expected = max(order.params.beam_width, order.params.num_sequences) * estimator.estimate_generated(
        order.default_max_tokens if order.max_tokens is None else order.max_tokens
    )
    with model.admission.admit(
        order.num_sequences,
        estimate_prompts(order, model) + order.num_prompts * num_expected,
        deadline_s=call.deadline_s,
        tokens_per_s=tokens_per_s,
    ) as ticket:
        prompts, params = await prepare_prompts(call, model, order)
        num_tokens = call.times.num_tokens
        ticket.correct(num_tokens + order.num_prompts * num_expected)
        if order.num_chars:
            estimator.learn(order.num_chars, num_tokens)
        generation = TextGeneration(call, model, order.rules, prompts, params, metrics)
        try:
            generation.start()
            yield generation
        finally:
            generation.cancel()
            metrics.observe_tokens(num_prompt_tokens=num_tokens, num_generated_tokens=generation.num_generated_tokens)
    if order.max_tokens != 0:
        estimator.learn_generated(generation.num_generated_tokens / order.num_sequences)


def check_sequences(order: GenerationOrder, model: ServedModel) -> None:
    """Raises InvalidField."""
    limit = model.config.limits.max_client_batch_size
    if order.num_sequences > limit:
        raise InvalidField(
            f"{order.field} and n ask for {order.num_sequences} answers; the limit is {limit}, send several requests",
            param=order.field,
        )


def estimate_prompts(order: GenerationOrder, model: ServedModel) -> int:
    """Exact for token ids, guessed from the characters for text."""
    if not order.num_chars:
        return order.num_ids
    return model.admission.estimator.estimate(
        order.num_chars, num_texts=order.num_prompts, max_input_tokens=model.tokenizer.max_input_tokens
    )


async def prepare_prompts(
    call: HttpCall, model: ServedModel, order: GenerationOrder
) -> tuple[list[TokenArray], list[GenerationParams]]:
    """Tokens, and what is wanted of each prompt. Raises InvalidField and its kinds."""
    begin_s = monotonic()
    prompts = [sequence.input_ids for sequence in await order.encode()]
    params = [settle_params(order, len(prompt), model) for prompt in prompts]
    if order.bad_words:
        bad_words = await encode_bad_words(order.bad_words, model.tokenizer)
        params = [replace(item, bad_words=bad_words) for item in params]
    call.times.tokenize_s = monotonic() - begin_s
    call.times.num_inputs = len(prompts)
    call.times.num_tokens = sum(len(prompt) for prompt in prompts)
    return prompts, params


def settle_params(order: GenerationOrder, num_prompt_tokens: int, model: ServedModel) -> GenerationParams:
    """One prompt's. Raises InputTooLong where prompt and answer are longer than the context, InvalidField."""
    context = model.tokenizer.max_input_tokens
    room = context - num_prompt_tokens
    least = 1 if order.max_tokens is None else order.max_tokens
    if least > room:
        raise InputTooLong(
            f"{order.field} has {num_prompt_tokens} tokens; with {least} to generate that is over the maximum "
            f"context length of {context} tokens. {explain_room(room)}",
            param=order.field,
        )
    max_tokens = min(order.default_max_tokens, room) if order.max_tokens is None else order.max_tokens
    if order.params.min_tokens > max_tokens:
        raise InvalidField(
            f"min_tokens is {order.params.min_tokens}, and at most {max_tokens} tokens are to be generated; lower it "
            "or raise max_tokens",
            param="min_tokens",
        )
    return replace(order.params, max_tokens=max_tokens, seed=secrets.randbits(63) if order.seed is None else order.seed)


def explain_room(room: int) -> str:
    """`room`: tokens that the prompt leaves."""
    return f"Lower max_tokens to at most {room}, or shorten it" if room > 0 else "Shorten it"


class TextGeneration:
    """The answers to one call's prompts, `num_sequences` each, in the order of the prompts. To be read once.

    Mutable: the answers' texts, and what the engine has told of the prompts.
    """

    def __init__(
        self,
        call: HttpCall,
        model: ServedModel,
        rules: TextRules,
        prompts: list[TokenArray],
        params: list[GenerationParams],
        metrics: TokenMetrics,
    ) -> None:
        self.prompts = prompts
        self.num_cached_tokens = 0
        self.num_generated_tokens = 0
        self.prompt_logprobs: list[tuple[TokenLogprob, ...]] = [() for _ in prompts]
        """Of each prompt's tokens from the second on, once its first news are there."""
        self.num_per_prompt = params[0].num_sequences
        self._call, self._model, self._params, self._metrics = call, model, params, metrics
        self._streams: list[GenerationStream] = []
        self._texts = [
            TextStream(place * self.num_per_prompt + index, model.tokenizer.texts, prompt_ids, rules)
            for place, prompt_ids in enumerate(prompt.tolist() for prompt in prompts)
            for index in range(self.num_per_prompt)
        ]
        self._num_open = len(self._texts)
        self._last_s = [0.0] * len(self._texts)

    def start(self) -> None:
        """Raises EngineUnavailable, Unservable."""
        for prompt, params in zip(self.prompts, self._params, strict=True):
            self._streams.append(self._model.engine.generate(prompt, params, self._call.deadline_s))

    def cancel(self) -> None:
        for stream in self._streams:
            stream.cancel()

    async def read(self) -> AsyncGenerator[list[Delta]]:
        """News as they come, until every answer has its finish_reason. Raises what the engine's streams raise.

        Whoever may leave before the end must close it.
        """
        async with aclosing(merge_streams(self._streams)) as news:
            async for place, events in news:
                self._learn(place, events)
                deltas = [delta for event in events if (delta := self._read(place, event)) is not None]
                if deltas:
                    yield deltas
                if not self._num_open:
                    return
        raise RuntimeError(f"the engine ended with {self._num_open} answers open. This is a bug.")

    def _learn(self, place: int, events: Sequence[GenerationEvent]) -> None:
        """What comes along with a prompt's first news."""
        for event in events:
            self.num_cached_tokens += event.num_cached_tokens
            if event.prompt_logprobs:
                self.prompt_logprobs[place] = event.prompt_logprobs

    def _read(self, place: int, event: GenerationEvent) -> Delta | None:
        """None for an answer that has ended: what the engine had sent before it learned of that."""
        text = self._texts[place * self.num_per_prompt + event.index]
        if text.finish_reason:
            return None
        delta = text.push(event)
        self._observe(delta)
        if delta.finish_reason:
            self._num_open -= 1
            if not event.finish_reason:
                self._streams[place].stop(event.index)
        return delta

    def _observe(self, delta: Delta) -> None:
        """An answer's first tokens count from the call's start, later ones from those before."""
        num_tokens = len(delta.tokens)
        if not num_tokens:
            return
        self.num_generated_tokens += num_tokens
        now_s, last_s = monotonic(), self._last_s[delta.index]
        if last_s:
            self._metrics.observe_gap((now_s - last_s) / num_tokens, num_tokens)
        else:
            self._metrics.observe_first(now_s - self._call.start_s)
        self._last_s[delta.index] = now_s


async def merge_streams(streams: Sequence[GenerationStream]) -> AsyncGenerator[tuple[int, list[GenerationEvent]]]:
    """(which stream, its events) as they come. The first failure of any is the failure of all."""
    if len(streams) == 1:
        async for events in streams[0]:
            yield 0, events
        return
    arrived: asyncio.Queue[tuple[int, list[GenerationEvent] | Exception | None]] = asyncio.Queue()
    tasks = [asyncio.create_task(pump(place, stream, arrived)) for place, stream in enumerate(streams)]
    num_open = len(tasks)
    try:
        while num_open:
            place, news = await arrived.get()
            if isinstance(news, Exception):
                raise news
            if news is None:
                num_open -= 1
            else:
                yield place, news
    finally:
        for task in tasks:
            task.cancel()


async def pump(
    place: int, stream: GenerationStream, arrived: "asyncio.Queue[tuple[int, list[GenerationEvent] | Exception | None]]"
) -> None:
    """Everything a stream says, and its end or failure at last."""
    try:
        async for events in stream:
            arrived.put_nowait((place, events))
        arrived.put_nowait((place, None))
    except Exception as error:
        arrived.put_nowait((place, error))
