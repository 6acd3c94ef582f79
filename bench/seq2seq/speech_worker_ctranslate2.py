"""Worker: CTranslate2's Whisper, which is what faster-whisper computes with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np

from bench.generation.session import Task, split
from bench.peers.ctranslate2_models import convert, count_workers, open_model
from bench.seq2seq.features import NUM_TOKENS, WHISPER_PROMPT, make_features
from bench.seq2seq.session import Search, Translate, serve

END = 50257


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Translate:
    whisper = open_model(ctranslate2.models.Whisper, converted, options, threads)
    workers = count_workers(options, threads)
    return lambda tasks, batch_size, search: transcribe(whisper, workers, tasks, batch_size, search)


def transcribe(
    whisper: ctranslate2.models.Whisper, workers: int, tasks: Sequence[Task], batch_size: int, search: Search
) -> list[list[int]]:
    """As many batches at a time as there are workers, and as there may be clips under way."""
    features = [make_features(task).T for task in tasks]
    groups = list(split(range(len(tasks)), batch_size))
    at_a_time = max(1, min(workers, search.max_concurrent // batch_size))
    answers: list[list[int]] = []
    for first in range(0, len(groups), at_a_time):
        started = [start(whisper, features, places) for places in groups[first : first + at_a_time]]
        answers += [result.result().sequences_ids[0] for results in started for result in results]
    return answers


def start(whisper: ctranslate2.models.Whisper, features: Sequence[np.ndarray], places: Sequence[int]) -> list[Any]:
    heard = np.ascontiguousarray(np.stack([features[place] for place in places]))
    return whisper.generate(
        ctranslate2.StorageView.from_array(heard),
        [list(WHISPER_PROMPT)] * len(places),
        beam_size=1,
        max_length=2 * NUM_TOKENS,  # half of it is for answers
        suppress_blank=False,
        suppress_tokens=[END],
        asynchronous=True,
    )


if __name__ == "__main__":
    serve(load, convert)
