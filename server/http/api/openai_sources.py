"""Completions of encoder-decoders: the prompt is what is read, and the text of a choice is written from it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from server.errors import InvalidField
from server.http.api.generation_fields import GenerationFields
from server.http.api.generation_params import build_params
from server.http.endpoint import TextJob
from server.http.state import ServedModel
from server.http.writing import build_source_job
from server.tasks.generate import GenerationWish
from server.tasks.text2text import DecodingWish, settle_params
from server.text.inputs import Input
from server.text.languages import Instruction
from server.wire.generation import GenerationParams


def instruct(
    model: ServedModel, inputs: Sequence[Input], source_language: str | None, target_language: str | None
) -> Instruction:
    """Token ids are read as they are; T5's words for a language stand before a text where one is named. Raises
    InvalidField."""
    assert model.languages is not None, "Every encoder-decoder of texts has them. This is a bug."
    is_named = source_language is not None or target_language is not None
    if model.languages.info.style == "words" and not is_named:
        return Instruction()
    given = model.languages.instruct(source_language, target_language)
    if all(isinstance(item, str) for item in inputs):
        return given
    if given.prefix:
        raise InvalidField(
            "source_language and target_language are told this model in words before a text, and prompt has token ids; "
            "put the tokens of these words before them",
            param="target_language" if source_language is None else "source_language",
        )
    return replace(given, around=None)


def build_job_of_sources(
    asked: GenerationFields, model: ServedModel, inputs: Sequence[Input], given: Instruction, num_logprobs: int
) -> TextJob:
    """Raises InvalidField."""
    params = choose_params(asked, model, given, num_logprobs)
    wish = GenerationWish(params, params.max_tokens, params.max_tokens, tuple(asked.bad_words or ()))
    settle = partial(wish.complete, max_tokens=params.max_tokens, tokenizer=model.tokenizer)
    job = build_source_job(model, inputs, "prompt", given, params)
    return replace(job, params=None, settle=settle, priority=asked.priority or 0)


def choose_params(
    asked: GenerationFields, model: ServedModel, given: Instruction, num_logprobs: int
) -> GenerationParams:
    """How tokens are chosen the client says, with OpenAI's defaults; the directory has rules, and says how long answers
    are, which end by themselves. Raises InvalidField."""
    params = build_params(asked, model, num_logprobs=num_logprobs)
    wish = DecodingWish(
        max_tokens=asked.max_tokens,
        min_tokens=asked.min_tokens,
        length_penalty=asked.length_penalty,
        early_stopping=asked.early_stopping,
        repetition_penalty=asked.repetition_penalty,
        forced_begin=given.forced_begin,
    )
    own = settle_params(model.info, wish)
    check_grammar(asked, params, own)
    return replace(
        params,
        max_tokens=own.max_tokens,
        repetition_penalty=own.repetition_penalty,
        processors=(*params.processors, *own.processors),
        length_penalty=own.length_penalty,
        early_stopping=own.early_stopping,
    )


def check_grammar(asked: GenerationFields, params: GenerationParams, own: GenerationParams) -> None:
    """What a directory forces or forbids knows no grammar: both could leave no token. Raises InvalidField."""
    if params.grammar[0] and own.processors:
        field = "response_format" if asked.response_format is not None else "regex"
        raise InvalidField(
            f"{field} is not supported for this model, whose directory has rules of its own for what it writes (a "
            "first or a last token, least lengths, repeats); leave it out",
            param=field,
        )
