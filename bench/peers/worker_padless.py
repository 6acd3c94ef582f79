"""Worker: Padless, in the environment that `bench.peers` runs in. A batch size is a number of sequences per step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protocol import Embed, Rows, Sequences, serve

from models.info import read_info
from models.load import load_model
from runtime.build import build_engine
from runtime.config import EngineConfig
from runtime.limits import BatchLimits
from server.engine.batchers.packing import pack_sequences
from server.wire.job import TokenSequence

MAX_BATCH_TOKENS = 16_384


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Embed:
    info = read_info(model, pooling="mean", normalize=True)
    config = EngineConfig.model_validate({**options, "threads": threads})
    limits = BatchLimits(MAX_BATCH_TOKENS, max_batch_requests=512, max_input_tokens=info.max_input_tokens)
    engine = build_engine(load_model(model, info), config, limits, lambda *_: None)

    def embed(batches: Sequence[Sequences]) -> list[Rows]:
        packed = [pack_sequences([TokenSequence(ids) for ids in batch]) for batch in batches]
        return [engine.run(batch).arrays["embeddings"] for batch in packed]

    return embed


if __name__ == "__main__":
    serve(load)
