"""What is to be answered, the same on every run: lines of mixed length."""

import json
from pathlib import Path

import numpy as np

from bench.generation.session import Task
from bench.generation.workload import Lengths, load_tokenizer
from bench.seq2seq.detransliterator import LINES
from bench.seq2seq.directories import DETRANSLITERATOR, END, PAD
from bench.seq2seq.session import MAX_SOURCE_TOKENS

LENGTHS = Lengths(22, 4, 80)
"""Of sources whose weights are random: sentences."""
STEP = 8
"""Their answers are as long, up to the next multiple of it: batches of padded engines then end together, as they would
not if each ended anywhere, and few engines drop what has ended from a batch of beams."""


def count_sources(concurrency: int, waves: int) -> int:
    """Of a run, and enough of single ones to tell something."""
    return max(8, waves * concurrency)


def sample_tasks(name: str, model: Path, count: int) -> list[Task]:
    rng = np.random.default_rng(0)
    return (sample_lines if name == DETRANSLITERATOR else sample_random)(model, count, rng)


def sample_lines(model: Path, count: int, rng: np.random.Generator) -> list[Task]:
    """Real ones, whose answers end where they end."""
    tokenizer = load_tokenizer(model)
    lines = json.loads((model / LINES).read_text(encoding="utf-8"))
    encoded = [tokenizer.encode(lines[place]).ids for place in rng.permutation(len(lines))[: 2 * count]]
    return [Task(ids, 0) for ids in encoded if len(ids) <= MAX_SOURCE_TOKENS][:count]


def sample_random(model: Path, count: int, rng: np.random.Generator) -> list[Task]:
    sources = [[*rng.integers(END + 1, PAD, length - 1).tolist(), END] for length in LENGTHS.sample(count, rng)]
    return [Task(source, -(-len(source) // STEP) * STEP) for source in sources]
