"""Jobs for a vector of each token, whatever protocol asks: ColBERTs have rules for queries and documents."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from server.errors import InvalidField
from server.http.endpoint import TextJob
from server.http.state import ServedModel
from server.tasks import token_embed
from server.text.inputs import Input
from server.text.late_interaction import Side
from server.text.prompts import Prompt, find_default
from server.text.work import Truncation
from server.wire.job import TokenSequence

MAX_NUMBERS = 1 << 26
"""Of all tokens of a call, which are held as fp32: 268 MB."""
MAX_WRITTEN_NUMBERS = 1 << 24
"""Of those that are the answer: 67 MB, and as JSON 12 bytes each."""


def build_job(
    model: ServedModel,
    inputs: Sequence[Input],
    field: str,
    *,
    side: Side = "document",
    prompt: Prompt | None = None,
    truncation: Truncation | None = None,
    max_input_tokens: int | None = None,
    priority: int = 0,
) -> TextJob:
    """`prompt`, `truncation`, `max_input_tokens`: where the call chooses them. A ColBERT cuts what is longer than it
    was trained with."""
    if model.info.late_interaction is None:
        job = TextJob(
            *(token_embed.TASK, inputs, field, token_embed.TokenEmbedParams()),
            prompt=find_default(model.info) if prompt is None else prompt,
            truncation=truncation or model.config.limits.truncation,
            max_input_tokens=max_input_tokens,
            priority=priority,
        )
        return bound_numbers(job, model, MAX_NUMBERS)
    rules = model.rules[side]
    job = TextJob(
        *(token_embed.TASK, inputs, field, token_embed.TokenEmbedParams(rules.skipped_ids)),
        prompt=rules.prompt if prompt is None else prompt,
        truncation=truncation or "right",
        max_input_tokens=min(rules.max_tokens, max_input_tokens or rules.max_tokens),
        filling=rules.filling,
        priority=priority,
    )
    return bound_numbers(job, model, MAX_NUMBERS)


def bound_numbers(job: TextJob, model: ServedModel, most: int = MAX_WRITTEN_NUMBERS) -> TextJob:
    """The job, refused once it is known to have more tokens than `most` numbers are for: a body of 1 MB can ask for
    gigabytes."""

    async def settle(sequences: Sequence[TokenSequence]) -> Any:
        num_tokens, width = sum(sequence.num_tokens for sequence in sequences), model.info.output_dim
        if num_tokens * width > most:
            raise InvalidField(
                f"{job.field} has {num_tokens:,} tokens, each of which gives {width:,} numbers; the limit is {most:,} "
                "numbers per request: send several",
                param=job.field,
            )
        return job.params

    return replace(job, settle=settle)


def is_mean(model: ServedModel) -> bool:
    """Scores are means."""
    late = model.info.late_interaction
    return late is not None and late.is_mean
