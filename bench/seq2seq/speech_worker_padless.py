"""Worker: Padless's engine loop, which hears."""

from pathlib import Path
from typing import Any

import numpy as np

from bench.generation.session import Task
from bench.seq2seq.features import MAX_CONCURRENT, NUM_FRAMES, NUM_MELS, NUM_TOKENS, WHISPER_PROMPT, make_features
from bench.seq2seq.session import Translate, serve
from bench.seq2seq.worker_padless import Source, open_answering
from runtime.limits import BatchLimits
from server.wire.job import join_rows

MAX_SOURCE_TOKENS = NUM_FRAMES // 2
MAX_TARGET_TOKENS = len(WHISPER_PROMPT) + NUM_TOKENS
MAX_BATCH_TOKENS = MAX_SOURCE_TOKENS + MAX_CONCURRENT * len(WHISPER_PROMPT)
"""Room for one clip, and for the tokens of all."""


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Translate:
    limits = BatchLimits(MAX_BATCH_TOKENS, MAX_CONCURRENT, MAX_TARGET_TOKENS, MAX_CONCURRENT, MAX_SOURCE_TOKENS)
    return open_answering(model, limits, options["precision"], threads, read_clip)


def read_clip(task: Task) -> Source:
    """Two frames make a row."""
    rows = make_features(task).reshape(MAX_SOURCE_TOKENS, 2 * NUM_MELS)
    return {"features": join_rows([rows]), "input_ids": join_rows([np.array(WHISPER_PROMPT, np.int32)])}


if __name__ == "__main__":
    serve(load)
