"""Requests to time engines with: lengths of several shapes, and batches of random tokens."""

import numpy as np
import numpy.typing as npt

from runtime.batch import Batch
from server.engine.batchers.packing import pack_sequences, sort_by_length
from server.wire.job import TokenSequence

MAX_TOKENS = 256
FIRST_TOKEN, LAST_TOKEN = 1000, 30_000
"""Ordinary words in BERT's vocabulary."""


def sample_lengths(kind: str, num_seqs: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Tokens per sequence, 8 to 256: constant-N, uniform, lognormal (median 40), or long-tail (1 % of 256); or of
    documents, 32 to 8,192 (median 512)."""
    if kind.startswith("constant-"):
        return np.full(num_seqs, int(kind.removeprefix("constant-")))
    if kind == "uniform":
        return rng.integers(8, MAX_TOKENS + 1, num_seqs)
    if kind == "lognormal":
        return np.clip(np.exp(rng.normal(np.log(40), 0.7, num_seqs)), 8, MAX_TOKENS).astype(np.int64)
    if kind == "documents":
        return np.clip(np.exp(rng.normal(np.log(512), 1.0, num_seqs)), 32, 8192).astype(np.int64)
    if kind == "long-tail":
        return np.where(rng.random(num_seqs) < 0.01, MAX_TOKENS, rng.integers(16, 49, num_seqs))
    raise ValueError(f"unknown kind of lengths {kind!r}")


def sample_sequences(lengths: npt.NDArray[np.int64], rng: np.random.Generator) -> list[TokenSequence]:
    return [TokenSequence(rng.integers(FIRST_TOKEN, LAST_TOKEN, length, dtype=np.int32)) for length in lengths]


def pack_sorted(sequences: list[TokenSequence]) -> Batch:
    """As the server packs."""
    order = sort_by_length([sequence.num_tokens for sequence in sequences])
    return pack_sequences([sequences[place] for place in order])


def pad_all(sequences: list[TokenSequence]) -> list[TokenSequence]:
    """Every sequence as long as the longest: what the same engine would be fed without packing."""
    longest = max(sequence.num_tokens for sequence in sequences)
    return [TokenSequence(np.resize(sequence.input_ids, longest)) for sequence in sequences]
