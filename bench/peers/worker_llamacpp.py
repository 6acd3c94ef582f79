"""Worker: llama.cpp's embeddings of Qwen3's architecture, means over tokens, sequences end to end in one batch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from protocol import Embed, Rows, Sequences, serve

from bench.gguf_files import open_context, open_model, write_files

MAX_BATCH_TOKENS, MAX_SEQUENCES = 2048, 64


def convert(model: Path, out: Path) -> None:
    """Writes f16.gguf and q8_0.gguf."""
    kinds = (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q8_0)
    write_files(model, out, "qwen3", kinds, rope_theta=lambda config: float(config["rope_parameters"]["rope_theta"]))


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Embed:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = MAX_BATCH_TOKENS
    params.n_seq_max = MAX_SEQUENCES
    params.embeddings = True
    params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_MEAN
    context = open_context(open_model(converted / options["file"]), params, threads)
    width = json.loads((model / "config.json").read_text())["hidden_size"]
    batch = llama_cpp.llama_batch_init(MAX_BATCH_TOKENS, 0, 1)
    return lambda batches: [run(context, batch, width, part) for each in batches for part in cut(each)]


def cut(sequences: Sequences) -> list[Sequences]:
    """A batch to those that there is room for."""
    parts: list[list[Any]] = [[]]
    for sequence in sequences:
        if sum(map(len, parts[-1])) + len(sequence) > MAX_BATCH_TOKENS and parts[-1]:
            parts.append([])
        parts[-1].append(sequence)
    return list(parts)


def run(context: Any, batch: Any, width: int, sequences: Sequences) -> Rows:
    """End to end. Raises RuntimeError where llama.cpp computes nothing."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
    batch.n_tokens = fill(batch, sequences)
    status = llama_cpp.llama_decode(context, batch)
    if status:
        raise RuntimeError(f"llama_decode returned {status}")
    rows = np.stack([read_row(context, number, width) for number in range(len(sequences))])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def fill(batch: Any, sequences: Sequence[np.ndarray]) -> int:
    """End to end; how many tokens there are."""
    place = 0
    for number, sequence in enumerate(sequences):
        for position, token in enumerate(sequence.tolist()):
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, number, 1
            place += 1
    return place


def read_row(context: Any, number: int, width: int) -> Rows:
    return np.ctypeslib.as_array(llama_cpp.llama_get_embeddings_seq(context, number), (width,)).copy()


if __name__ == "__main__":
    serve(load, convert)
