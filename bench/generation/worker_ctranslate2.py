"""Worker: CTranslate2's generator. Each answer is stopped at its length, and its row leaves the batch."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ctranslate2

from bench.generation.session import Generate, Task, serve, split
from bench.peers.ctranslate2_models import convert, open_model

VOCABULARY = "vocabulary.json"


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Generate:
    generator = open_model(ctranslate2.Generator, converted, options, threads)
    pieces = json.loads((converted / VOCABULARY).read_text())
    return lambda tasks, batch_size: generate(generator, pieces, tasks, batch_size)


def generate(
    generator: ctranslate2.Generator, pieces: Sequence[str], tasks: Sequence[Task], batch_size: int
) -> list[list[int]]:
    """Sorted by the lengths of prompts: of a batch it computes the shortest length at once, and the rest of the longer
    prompts token by token. Batches are queued, so that several workers share them."""
    order = sorted(range(len(tasks)), key=lambda place: (len(tasks[place].input_ids), tasks[place].num_tokens))
    groups = list(split(order, batch_size))
    queued = [start(generator, pieces, [tasks[place] for place in places]) for places in groups]
    answers: list[list[int]] = [[] for _ in tasks]
    for places, results in zip(groups, queued, strict=True):
        for place, result in zip(places, results, strict=True):
            answers[place] = result.result().sequences_ids[0][: tasks[place].num_tokens]
    return answers


def start(generator: ctranslate2.Generator, pieces: Sequence[str], tasks: Sequence[Task]) -> list[Any]:
    """A batch. Its steps count from the end of the shortest prompt."""
    shortest = min(len(task.input_ids) for task in tasks)
    last_steps = [len(task.input_ids) - shortest + task.num_tokens for task in tasks]
    return generator.generate_batch(
        [[pieces[token] for token in task.input_ids] for task in tasks],
        max_length=max(last_steps),
        min_length=max(last_steps),
        end_token=[len(pieces) - 1],  # in place of the real one, which is an ordinary token here
        include_prompt_in_result=False,
        callback=stop_at(last_steps),
        asynchronous=True,
    )


def stop_at(last_steps: Sequence[int]) -> Callable[[ctranslate2.GenerationStepResult], bool]:
    return lambda result: result.step + 1 >= last_steps[result.batch_id]


if __name__ == "__main__":
    serve(load, convert)
