"""A worker that needs nothing but numpy: an embedding is a sequence's mean token, as a point on the circle."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.protocol import Embed, Rows, Sequences, pad, pool, serve


def convert(model: Path, out: Path) -> None:
    if model.name == "broken":
        sys.exit("it is broken")
    (out / "converted").write_text(model.name)


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Embed:
    print("libraries print what they like")
    if "failure" in options:
        raise ValueError(options["failure"])
    return lambda batches: [embed(batch) for batch in batches]


def embed(batch: Sequences) -> Rows:
    if len(batch) == 64:
        sys.exit("out of memory")
    input_ids, mask = pad(batch)
    angles = input_ids / 30_000
    return pool(np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32), mask)


if __name__ == "__main__":
    serve(load, convert)
