"""Worker: CTranslate2's translator. A source that is answered leaves its batch."""

import json
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ctranslate2

from bench.generation.session import Task, split
from bench.peers.ctranslate2_models import convert, open_model
from bench.seq2seq.session import MAX_SOURCE_TOKENS, MAX_TARGET_TOKENS, Search, Translate, serve

VOCABULARY = "shared_vocabulary.json"


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Translate:
    translator = open_model(ctranslate2.Translator, converted, options, threads)
    pieces = json.loads((converted / VOCABULARY).read_text())
    return lambda tasks, batch_size, search: translate(translator, pieces, tasks, batch_size, search)


def translate(
    translator: ctranslate2.Translator, pieces: Sequence[str], tasks: Sequence[Task], batch_size: int, search: Search
) -> list[list[int]]:
    """Sorted by lengths, the longest first. Batches are queued, so that several workers share them, but no more of them
    than there may be sources under way."""
    ids = {piece: index for index, piece in enumerate(pieces)}
    order = sorted(range(len(tasks)), key=lambda place: (tasks[place].num_tokens, len(tasks[place].input_ids)))
    answers: list[list[int]] = [[] for _ in tasks]
    queued: deque[tuple[Sequence[int], list[Any]]] = deque()

    def settle() -> None:
        places, results = queued.popleft()
        for place, result in zip(places, results, strict=True):
            answer = [ids[piece] for piece in result.result().hypotheses[0]]
            answers[place] = answer[: tasks[place].num_tokens or None]

    for places in split(order[::-1], batch_size):
        while queued and sum(len(each) for each, _ in queued) + len(places) > search.max_concurrent:
            settle()
        queued.append((places, start(translator, pieces, [tasks[place] for place in places], search)))
    while queued:
        settle()
    return answers


def start(
    translator: ctranslate2.Translator, pieces: Sequence[str], tasks: Sequence[Task], search: Search
) -> list[Any]:
    """A batch."""
    wanted = [task.num_tokens for task in tasks]
    settings: dict[str, Any] = {"max_decoding_length": MAX_TARGET_TOKENS}
    if max(wanted):
        # In place of the real end, which is an ordinary token here.
        settings = {
            "max_decoding_length": max(wanted),
            "min_decoding_length": max(wanted),
            "end_token": [len(pieces) - 1],
        }
    if search.beam_width == 1 and min(wanted) < max(wanted):
        settings["callback"] = stop_at(wanted)
    return translator.translate_batch(
        [[pieces[token] for token in task.input_ids] for task in tasks],
        beam_size=search.beam_width,
        max_input_length=MAX_SOURCE_TOKENS,
        asynchronous=True,
        **settings,
    )


def stop_at(wanted: Sequence[int]) -> Callable[[ctranslate2.GenerationStepResult], bool]:
    return lambda result: result.step + 1 >= wanted[result.batch_id]


if __name__ == "__main__":
    serve(load, convert)
