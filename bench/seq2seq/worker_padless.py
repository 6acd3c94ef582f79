"""Worker: Padless's engine loop, in the environment that `bench.seq2seq` runs in."""

import asyncio
from collections.abc import Sequence
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
from server.wire.job import Job, join_rows

MAX_BATCH_TOKENS = 1024
MAX_SEQUENCES = MAX_CONCURRENT * MAX_BEAMS


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Translate:
    info = read_info(model)
    limits = BatchLimits(MAX_BATCH_TOKENS, MAX_SEQUENCES, MAX_TARGET_TOKENS, MAX_SEQUENCES, MAX_SOURCE_TOKENS)
    decoding = DecodingOptions(MAX_TARGET_TOKENS, has_prefix_cache=False)
    ours = open_ours(model, info, limits, decoding, threads=threads, precision=options["precision"])
    runner = asyncio.Runner()
    runner.run(ours.loop.start())

    def translate(tasks: Sequence[Task], max_concurrent: int, search: Search) -> list[list[int]]:
        return runner.run(answer_all(ours, info, tasks, max_concurrent, search))

    return translate


async def answer_all(
    ours: Ours, info: ModelInfo, tasks: Sequence[Task], max_concurrent: int, search: Search
) -> list[list[int]]:
    """In the order of the tasks; the next one is sent when one of `max_concurrent` has been answered."""
    places = asyncio.Semaphore(max_concurrent)

    async def answer_in_turn(task: Task) -> list[int]:
        async with places:
            return await answer(ours, info, task, search)

    return await asyncio.gather(*(answer_in_turn(task) for task in tasks))


async def answer(ours: Ours, info: ModelInfo, task: Task, search: Search) -> list[int]:
    """The best one, without the token that ended it."""
    stops = () if task.num_tokens else info.eos_token_ids
    params = GenerationParams(
        task.num_tokens or MAX_TARGET_TOKENS - 1,
        temperature=0.0,
        stop_token_ids=stops,
        beam_width=search.beam_width if search.beam_width > 1 else 0,
    )
    sources = join_rows([np.array(task.input_ids, np.int32)])
    token_ids: list[int] = []
    inputs = {"input_ids": join_rows([begin_answer(info)]), "source_ids": sources}
    async for result in ours.loop.submit(Job("text2text", inputs, TIMEOUT_S, params)):
        for news in read_news(result):
            token_ids += news.token_ids
    return token_ids[:-1] if token_ids[-1] in stops else token_ids


if __name__ == "__main__":
    serve(load)
