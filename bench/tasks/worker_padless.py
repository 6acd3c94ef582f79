"""Worker: Padless' engine with any head, in the environment of the benchmark; a batch is so many sequences per step."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.protocol import Embed, Rows, Sequences, run_worker
from bench.tasks.session import MemorySession
from models.info import read_info
from models.load import load_model
from runtime.batch import Output
from runtime.build import build_engine
from runtime.config import EngineConfig
from runtime.limits import BatchLimits
from server.engine.batchers.packing import pack_sequences
from server.tasks import sparse
from server.wire.job import Ragged, TokenSequence

LIMITS = BatchLimits(max_batch_tokens=16_384, max_batch_requests=512, max_input_tokens=256)


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Embed:
    info = read_info(model, task=options["task"])
    config = EngineConfig.model_validate({"precision": options["precision"], "threads": threads})
    engine = build_engine(load_model(model, info), config, LIMITS, lambda *_: None)
    read = READERS[info.task]

    def embed(batches: Sequence[Sequences]) -> list[Rows]:
        packed = [pack_sequences([TokenSequence(ids) for ids in batch]) for batch in batches]
        return [read(engine.run(batch)) for batch in packed]

    return embed


def sum_up(output: Output) -> Rows:
    """Sparse vectors as the server makes them, then how many tokens have a weight, and the sum of those."""
    found = sparse.reduce({"max_logits": Ragged(output.arrays["max_logits"])}, sparse.SparseParams())
    splits, weights = found["weights"].row_splits, found["weights"].values
    sums = np.diff(np.concatenate([[0.0], np.cumsum(weights, dtype=np.float64)])[splits])
    return np.stack([np.diff(splits), sums], axis=1).astype(np.float32)


READERS: dict[str, Callable[[Output], Rows]] = {
    "classify": lambda output: output.arrays["logits"],
    "token_classify": lambda output: output.arrays["token_logits"],
    "sparse": sum_up,
}

if __name__ == "__main__":
    run_worker(MemorySession(load), None)
