"""The models that generate, and what is asked of them: prompts and answers of mixed lengths, the same on every run."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from bench.generation.decoders import find_decoder
from bench.generation.session import Task
from loadtest.words import WORDS

SPREAD = 0.7
"""Of the logarithms of lengths, as `bench.traffic` has it."""


@dataclass(frozen=True)
class Lengths:
    """Log-normal lengths: `median`, and what falls outside [`least`, `most`] is moved there."""

    median: int
    least: int
    most: int

    def sample(self, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        drawn = np.exp(rng.normal(np.log(self.median), SPREAD, count))
        return np.clip(drawn, self.least, self.most).astype(np.int64)


@dataclass(frozen=True)
class Traffic:
    """Of one model. A prompt and its answer together stay within `max_total_tokens`."""

    prompts: Lengths
    answers: Lengths

    @property
    def max_total_tokens(self) -> int:
        return self.prompts.most + self.answers.most


MODELS = {
    "smollm2-135m-instruct": Traffic(Lengths(50, 8, 200), Lengths(40, 8, 128)),
    "stories15m": Traffic(Lengths(38, 8, 152), Lengths(30, 8, 100)),
}
"""By their names in `bench.generation.decoders`. stories15m has a context of 256 tokens."""


def find_model(name: str) -> Path:
    """The model's directory, made first where there is none. Raises NotAvailable."""
    return find_decoder(name)


def count_requests(concurrency: int, waves: int = 2) -> int:
    """Of a run, and enough of single ones to tell something."""
    return max(4, waves * concurrency)


def sample_tasks(model: Path, traffic: Traffic, count: int, seed: int = 0) -> list[Task]:
    """Common words in random order, so that each prompt is unlike the others from its start on."""
    rng = np.random.default_rng(seed)
    tokenizer = load_tokenizer(model)
    lengths = zip(traffic.prompts.sample(count, rng), traffic.answers.sample(count, rng), strict=True)
    return [Task(sample_prompt(tokenizer, int(prompt), rng), int(answer)) for prompt, answer in lengths]


def sample_prompt(tokenizer: Tokenizer, num_tokens: int, rng: np.random.Generator) -> list[int]:
    words = " ".join(rng.choice(WORDS, num_tokens))
    return list(tokenizer.encode(words).ids[:num_tokens])


def load_tokenizer(model: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
