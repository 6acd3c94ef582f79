"""The tasks there are. A new one is its file, a line here, and its routes in a file of `http/api`."""

from collections.abc import Sequence
from dataclasses import replace

from models.further_heads import name_output
from models.info import ModelInfo
from runtime.batch import ArraySpec
from server.config import ConfigError
from server.tasks import (
    classify,
    embed,
    fill_mask,
    generate,
    infer,
    multi_vector,
    question_answering,
    rerank,
    sparse,
    text2text,
    token_classify,
    token_embed,
    transcribe,
)
from server.tasks.head import Head
from server.tasks.task import Task

HEADS: dict[str, Head] = {
    head.name: head
    for head in (
        *(embed.HEAD, token_embed.HEAD, multi_vector.HEAD, sparse.HEAD, sparse.TOKEN_HEAD),
        *(classify.HEAD, token_classify.HEAD, question_answering.HEAD, fill_mask.HEAD, generate.HEAD),
        *(text2text.HEAD, transcribe.HEAD),
    )
}
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *(embed.TASK, multi_vector.TASK, token_embed.TASK, sparse.TASK, classify.TASK, rerank.TASK),
        *(token_classify.TASK, question_answering.TASK, fill_mask.TASK, infer.TASK, generate.TASK),
        *(text2text.TASK, transcribe.TASK),
    )
}


def list_tasks(info: ModelInfo) -> list[Task]:
    """Those that the model can do; first what it is made for."""
    return [task for task in TASKS.values() if task.can_use(info)]


def list_outputs(infos: Sequence[ModelInfo]) -> tuple[ArraySpec, ...]:
    """Of the graph for these heads."""
    return tuple(
        replace(spec, name=name_output(info.head, spec.name))
        for info in infos
        for spec in HEADS[info.task].describe_graph(info)
    )


def check_name(model: str, name: str) -> None:
    """`auto` is what the checkpoint is made for. Raises ConfigError."""
    if name not in ("auto", *HEADS):
        raise ConfigError(f"model {model}: task {name!r} is not known; tasks are auto, {', '.join(HEADS)}")
