"""Jobs for a vector of each token, whatever protocol asks: ColBERTs have rules for queries and documents."""

from collections.abc import Sequence

from server.http.endpoint import TextJob
from server.http.state import ServedModel
from server.tasks import token_embed
from server.text.inputs import Input
from server.text.late_interaction import Side
from server.text.prompts import find_default
from server.text.work import Truncation


def build_job(
    model: ServedModel,
    inputs: Sequence[Input],
    field: str,
    *,
    side: Side = "document",
    prompt: str | None = None,
    truncation: Truncation | None = None,
    priority: int = 0,
) -> TextJob:
    """`prompt`, `truncation`: where the call chooses them. A ColBERT cuts what is longer than it was trained with."""
    if model.info.late_interaction is None:
        return TextJob(
            *(token_embed.TASK, inputs, field, token_embed.TokenEmbedParams()),
            prompt=find_default(model.info) if prompt is None else prompt,
            truncation=truncation or model.config.limits.truncation,
            priority=priority,
        )
    rules = model.rules[side]
    return TextJob(
        *(token_embed.TASK, inputs, field, token_embed.TokenEmbedParams(rules.skipped_ids)),
        prompt=rules.prompt if prompt is None else prompt,
        truncation=truncation or "right",
        max_input_tokens=rules.max_tokens,
        filling=rules.filling,
        priority=priority,
    )


def is_mean(model: ServedModel) -> bool:
    """Scores are means."""
    late = model.info.late_interaction
    return late is not None and late.is_mean
