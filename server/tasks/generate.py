"""Generation: a prompt is gone on from, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from models.info import ModelInfo
from runtime.batch import ArraySpec
from server.config import ConfigError, ModelConfig
from server.errors import InputTooLong, InvalidField
from server.tasks.head import Example, Head, Work, refuse_pooling
from server.tasks.task import Arrays, Task
from server.text.bad_words import encode_bad_words
from server.text.tokenizer import Tokenizer
from server.wire.generation import GenerationParams
from server.wire.job import TokenSequence
from server.wire.processors import BadWords, MinTokens, Processor

MAX_LOGPROBS_IN_ALL = 3_000_000
"""Of one call. Each is some 80 bytes of the answer. One answer with 20 others for each of its tokens has fewer where a
context is 131,072 tokens long."""


@dataclass(frozen=True, slots=True)
class GenerationWish:
    """What a client wants before its prompts are tokenised: `params` but for what the other fields say."""

    params: GenerationParams
    max_tokens: int | None
    default_max_tokens: int
    """As many as there is room for, where `max_tokens` is None and there is room for less."""
    bad_words: tuple[str, ...] = ()
    min_tokens: int = 0
    """No stop token before so many others."""
    logprobs_field: str = "logprobs"
    """The request's field that says how many."""

    @property
    def most_tokens(self) -> int:
        """Of one answer."""
        return self.default_max_tokens if self.max_tokens is None else self.max_tokens

    async def settle(self, prompts: Sequence[TokenSequence], tokenizer: Tokenizer, field: str) -> GenerationParams:
        """`field` is the request's field the prompts came in. Raises InvalidField and its kinds."""
        context = tokenizer.max_input_tokens
        for prompt in prompts:
            self.check_room(prompt.num_tokens, context, field)
        # The engine ends every answer where the context does; this is what the shortest prompt leaves.
        most_room = context - min(prompt.num_tokens for prompt in prompts)
        return await self.complete(prompts, min(self.most_tokens, most_room), tokenizer)

    async def complete(
        self, prompts: Sequence[TokenSequence], max_tokens: int, tokenizer: Tokenizer
    ) -> GenerationParams:
        """For answers that have room for so many tokens. Raises InvalidField and its kinds."""
        self.check_logprobs(prompts, max_tokens)
        processors = (*self.params.processors, *await self.list_processors(tokenizer))
        return replace(self.params, max_tokens=max_tokens, processors=processors)

    async def list_processors(self, tokenizer: Tokenizer) -> list[Processor]:
        """Raises InvalidField and its kinds, naming bad_words."""
        processors: list[Processor] = []
        if self.bad_words:
            processors.append(BadWords(await encode_bad_words(self.bad_words, tokenizer)))
        if self.min_tokens:
            processors.append(MinTokens(self.min_tokens))
        return processors

    def check_logprobs(self, prompts: Sequence[TokenSequence], max_tokens: int) -> None:
        """Each answer repeats its prompt's. Raises InvalidField where they would fill the memory."""
        params = self.params
        num_logprobs = len(prompts) * max_tokens * (1 + params.num_logprobs)
        num_logprobs += sum(prompt.num_tokens for prompt in prompts) * (1 + params.num_prompt_logprobs)
        num_logprobs *= params.num_sequences
        if num_logprobs > MAX_LOGPROBS_IN_ALL:
            raise InvalidField(
                f"the call asks for up to {num_logprobs} logprobs: n (or best_of) x tokens x (1 + the most probable "
                f"ones); the limit is {MAX_LOGPROBS_IN_ALL}. Lower n, best_of, max_tokens or {self.logprobs_field}, or "
                "send several requests",
                param=self.logprobs_field,
            )

    def check_room(self, num_prompt_tokens: int, context: int, field: str) -> None:
        """Raises InputTooLong where prompt and answer are longer than the context, InvalidField."""
        room = context - num_prompt_tokens
        least = 1 if self.max_tokens is None else self.max_tokens
        if least > room:
            raise InputTooLong(
                f"{field} has {num_prompt_tokens} tokens; with {least} to generate that is over the maximum "
                f"context length of {context} tokens. {explain_room(room)}",
                param=field,
            )
        max_tokens = min(self.default_max_tokens, room) if self.max_tokens is None else self.max_tokens
        if self.min_tokens > max_tokens:
            raise InvalidField(
                f"min_tokens is {self.min_tokens}, and at most {max_tokens} tokens are to be generated; lower "
                "it or raise max_tokens",
                param="min_tokens",
            )


def explain_room(room: int) -> str:
    """`room`: tokens that the prompt leaves."""
    return f"Lower max_tokens to at most {room}, or shorten it" if room > 0 else "Shorten it"


def reduce(arrays: Arrays, params: GenerationParams) -> Arrays:
    """Tokens are small already."""
    return arrays


def check_config(model: ModelConfig) -> None:
    refuse_pooling(model, "embeddings, and this model generates")
    if model.limits.truncation != "error":
        raise ConfigError(
            f"model {model.name}: limits.truncation is for inputs to be embedded or classified, and this model "
            "generates: a prompt cut short would be another prompt. Leave it out"
        )


def describe_graph(info: ModelInfo) -> tuple[ArraySpec, ...]:
    return (ArraySpec("logits", "float32", ("num_logits", info.output_dim)),)


def describe_output(info: ModelInfo) -> str:
    return "answer included"


def make_example(info: ModelInfo, name: str, has_tokenizer: bool, has_chat_template: bool) -> Example:
    if has_chat_template:
        messages = [{"role": "user", "content": "Hello"}]
        return Example("/v1/chat/completions", {"model": name, "messages": messages, "stream": True})
    prompt = "Once upon a time" if has_tokenizer else [1, 2, 3]
    return Example("/v1/completions", {"model": name, "prompt": prompt, "max_tokens": 50})


HEAD = Head("generate", Work.DECODE, check_config, describe_graph, describe_output, make_example)
TASK = Task(
    name="generate",
    heads=("generate",),
    params=GenerationParams,
    routes=("POST /v1/completions", "POST /v1/chat/completions"),
    reduce=reduce,
)
