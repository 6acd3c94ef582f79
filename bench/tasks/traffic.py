"""What the tasks are asked: token ids between [CLS] and [SEP], and the same lengths as texts."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.traffic import FIRST_TOKEN, LAST_TOKEN, sample_lengths

CLS, SEP = 101, 102
"""In BERT's vocabulary."""
NUM_QUERY_TOKENS = 8
MAX_PASSAGE_TOKENS = 256 - NUM_QUERY_TOKENS - 3
"""With a query and three special tokens no pair is over the model's 256."""

TokenArray = npt.NDArray[np.int32]


def sample_singles(num_seqs: int) -> list[TokenArray]:
    """Log-normal lengths (median 40, 8 to 256), special tokens included."""
    rng = np.random.default_rng(0)
    lengths = sample_lengths("lognormal", num_seqs, rng)
    return [np.array([CLS, *sample_tokens(length - 2, rng), SEP], np.int32) for length in lengths]


def sample_pairs(num_passages: int) -> list[TokenArray]:
    """One query with passages of log-normal length (median 40)."""
    rng = np.random.default_rng(0)
    query = sample_tokens(NUM_QUERY_TOKENS, rng)
    lengths = np.minimum(sample_lengths("lognormal", num_passages, rng), MAX_PASSAGE_TOKENS)
    return [np.array([CLS, *query, SEP, *sample_tokens(length, rng), SEP], np.int32) for length in lengths]


def sample_tokens(count: int, rng: np.random.Generator) -> TokenArray:
    return rng.integers(FIRST_TOKEN, LAST_TOKEN, count, dtype=np.int32)


def sample_questions(directory: Path, num_questions: int, num_passages: int) -> list[tuple[str, list[str]]]:
    """Queries and passages as texts, of words that are one token each: as many tokens as `sample_pairs` has."""
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    words = [word for word, index in vocabulary.items() if index >= FIRST_TOKEN and word.isascii() and word.isalpha()]
    rng = np.random.default_rng(0)
    questions = []
    for _ in range(num_questions):
        lengths = np.minimum(sample_lengths("lognormal", num_passages, rng), MAX_PASSAGE_TOKENS)
        query, *passages = (" ".join(rng.choice(words, count)) for count in (NUM_QUERY_TOKENS, *lengths))
        questions.append((query, passages))
    return questions
