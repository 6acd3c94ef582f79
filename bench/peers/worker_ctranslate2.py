"""Worker: CTranslate2's encoder. It is told the lengths, and leaves padding out of its linear layers by itself."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from ctranslate2_models import convert, count_workers, open_model
from protocol import Embed, Rows, Sequences, pad, pool, serve


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Embed:
    encoder, workers = open_model(ctranslate2.Encoder, converted, options, threads), count_workers(options, threads)
    if workers == 1:
        return lambda batches: [run(encoder, batch) for batch in batches]
    return in_threads(workers, lambda batch: run(encoder, batch))


def run(encoder: ctranslate2.Encoder, batch: Sequences) -> Rows:
    input_ids, mask = pad(batch)
    output = encoder.forward_batch(
        ctranslate2.StorageView.from_array(input_ids.astype(np.int32)),
        lengths=ctranslate2.StorageView.from_array(mask.sum(1, dtype=np.int32)),
    )
    return pool(np.array(output.last_hidden_state, copy=False), mask)


def in_threads(workers: int, embed: Callable[[Sequences], Rows]) -> Embed:
    """Several batches at once, the longest first."""
    executor = ThreadPoolExecutor(workers)
    return lambda batches: list(executor.map(embed, reversed(batches)))[::-1]


if __name__ == "__main__":
    serve(load, convert)
