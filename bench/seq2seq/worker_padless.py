"""Worker: Padless's engine loop, in the environment that `bench.seq2seq` runs in."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.generation.ours import TIMEOUT_S, Ours, open_ours
from bench.generation.session import Task
from bench.seq2seq.session import (
    MAX_BEAMS,
    MAX_CONCURRENT,
    MAX_SOURCE_TOKENS,
    MAX_TARGET_TOKENS,
    Search,
    Translate,
    serve,
)
from models.info import ModelInfo, read_info
from runtime.limits import BatchLimits
from server.engine.batchers.decoding import DecodingOptions
from server.tasks.text2text import begin_answer
from server.wire.generation import GenerationParams, read_news
from server.wire.job import Job, Ragged, join_rows

Source = dict[str, Ragged]
ReadSource = Callable[[Task], Source]
MAX_BATCH_TOKENS = 1024
MAX_SEQUENCES = MAX_CONCURRENT * MAX_BEAMS


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Translate:
    limits = BatchLimits(MAX_BATCH_TOKENS, MAX_SEQUENCES, MAX_TARGET_TOKENS, MAX_SEQUENCES, MAX_SOURCE_TOKENS)
    return open_answering(model, limits, options["precision"], threads, read_text)


def open_answering(
    model: Path, limits: BatchLimits, precision: str, threads: int, read_source: ReadSource
) -> Translate:
    """`read_source`: what the encoder is given of a task."""
    info = read_info(model)
    decoding = DecodingOptions(limits.max_input_tokens, has_prefix_cache=False)
    ours = open_ours(model, info, limits, decoding, threads=threads, precision=precision)
    runner = asyncio.Runner()
    runner.run(ours.loop.start())

    def translate(tasks: Sequence[Task], max_concurrent: int, search: Search) -> list[list[int]]:
        sources = [read_source(task) for task in tasks]
        return runner.run(answer_all(ours, info, tasks, sources, max_concurrent, search))

    return translate


def read_text(task: Task) -> Source:
    return {"source_ids": join_rows([np.array(task.input_ids, np.int32)])}


async def answer_all(
    ours: Ours,
    info: ModelInfo,
    tasks: Sequence[Task],
    sources: Sequence[Source],
    max_concurrent: int,
    search: Search,
) -> list[list[int]]:
    """In the order of the tasks; the next one is sent when one of `max_concurrent` has been answered."""
    places = asyncio.Semaphore(max_concurrent)

    async def answer_in_turn(task: Task, source: Source) -> list[int]:
        async with places:
            return await answer(ours, info, task, source, search)

    pairs = zip(tasks, sources, strict=True)
    return await asyncio.gather(*(answer_in_turn(task, source) for task, source in pairs))


async def answer(ours: Ours, info: ModelInfo, task: Task, source: Source, search: Search) -> list[int]:
    """The best one, without the token that ended it."""
    stops = () if task.num_tokens else info.eos_token_ids
    params = GenerationParams(
        task.num_tokens or MAX_TARGET_TOKENS - 1,
        temperature=0.0,
        stop_token_ids=stops,
        beam_width=search.beam_width if search.beam_width > 1 else 0,
    )
    token_ids: list[int] = []
    inputs = {"input_ids": join_rows([begin_answer(info)]), **source}
    async for result in ours.loop.submit(Job(info.task, inputs, TIMEOUT_S, params)):
        for news in read_news(result):
            token_ids += news.token_ids
    return token_ids[:-1] if token_ids[-1] in stops else token_ids


if __name__ == "__main__":
    serve(load)
