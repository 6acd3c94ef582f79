"""Extractive question answering: the parts of a text that answer a question, as transformers 4's
QuestionAnsweringPipeline finds them (4.57; version 5 has none)."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.info import ModelInfo
from runtime.batch import ArraySpec
from server.config import ModelConfig
from server.tasks.classify import Rows
from server.tasks.head import Example, Head, Work, refuse_pooling
from server.tasks.task import Arrays, Task
from server.text.located import Window

Probabilities = npt.NDArray[np.float32]
Answer = dict[str, str | int | float]


@dataclass(frozen=True, slots=True)
class QuestionAnsweringParams:
    """Nothing is to be chosen: what clients ask for is made of the logits."""


def reduce(arrays: Arrays, params: QuestionAnsweringParams) -> Arrays:
    return arrays


class Span(NamedTuple):
    """Tokens `first` to `last` of a window, that one included."""

    first: int
    last: int
    score: float


@dataclass(slots=True)
class Found:
    """An answer. Mutable: its score grows where several spans are the same words."""

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class AnswerReader:
    """Makes answers of logits. `max_answer_len` counts tokens. `takes_none`: that there is no answer may be one.
    `aligns`: answers begin and end with whole words."""

    top_k: int = 1
    max_answer_len: int = 15
    takes_none: bool = False
    aligns: bool = True

    def read(self, windows: Sequence[Window], rows: Sequence[Rows]) -> Generator[None, None, list[Answer]]:
        """The best answers of one text, best first, bit by bit; fewer than `top_k` where it has no more. `rows`: logits
        of an answer's first and last token, `[num_tokens, 2]` of each window.

        Spans that are the same words are one answer with the sum of their scores, as in the pipeline: a sum may so be
        over 1 where windows overlap.
        """
        found: dict[str, Found] = {}
        none = np.inf
        for window, logits in zip(windows, rows, strict=True):
            starts, ends = (compute_probabilities(window, logits[:, column]) for column in (0, 1))
            none = min(none, float(starts[0] * ends[0]))
            for start, end, score in self.list_answers(window, starts, ends):
                text = window.text[start:end]
                known = found.setdefault(text.lower(), Found(text, start, end, 0.0))
                known.score += score
                yield
        answers = list(found.values())
        if self.takes_none:
            answers.append(Found("", 0, 0, none))
        best = sorted(answers, key=lambda answer: -answer.score)[: self.top_k]
        return [{"score": each.score, "start": each.start, "end": each.end, "answer": each.text} for each in best]

    def list_answers(
        self, window: Window, starts: Probabilities, ends: Probabilities
    ) -> Iterator[tuple[int, int, float]]:
        """Characters from, to, and the score. More spans than answers are wanted, where aligning makes one of some."""
        count = 2 * self.top_k + 10 if self.aligns else self.top_k
        for first, last, score in find_spans(starts, ends, ~window.is_special, self.max_answer_len, count):
            yield *self.find_chars(window, first, last), score

    def find_chars(self, window: Window, first: int, last: int) -> tuple[int, int]:
        begin, end = int(window.words[first]), int(window.words[last])
        if not self.aligns or begin < 0 or end < 0:
            return int(window.starts[first]), int(window.ends[last])
        tokens = ~window.is_special
        return (
            int(window.starts[np.flatnonzero(tokens & (window.words == begin))[0]]),
            int(window.ends[np.flatnonzero(tokens & (window.words == end))[-1]]),
        )


def compute_probabilities(window: Window, logits: Probabilities) -> Probabilities:
    """`[num_tokens]`: the softmax over the text's own tokens and the first one, which stands for no answer."""
    counts = ~window.is_special
    counts[0] = True
    exps: Probabilities = np.exp(np.where(counts, logits, -np.inf) - logits[counts].max())
    exps /= exps.sum()
    return exps


def find_spans(
    starts: Probabilities, ends: Probabilities, is_text: npt.NDArray[np.bool_], max_answer_len: int, count: int
) -> list[Span]:
    """The `count` best of the spans of up to `max_answer_len` tokens between tokens of the text, best first; of equal
    ones the first, then the shortest.

    Scores are products of probabilities, `starts[i] * ends[j]` for i <= j < i + max_answer_len (Chen et al., 2017).
    """
    places = np.flatnonzero(is_text)
    firsts, lasts = [], []
    for length in range(min(max_answer_len, len(starts))):
        inside = places[places + length < len(starts)]
        fitting = inside[is_text[inside + length]]
        firsts.append(fitting)
        lasts.append(fitting + length)
    first, last = np.concatenate(firsts or [places]), np.concatenate(lasts or [places])
    scores = starts[first] * ends[last]
    if count < len(scores):
        kept = np.flatnonzero(scores >= np.partition(scores, len(scores) - count)[len(scores) - count])
        first, last, scores = first[kept], last[kept], scores[kept]
    order = np.lexsort((last, first, -scores))[:count]
    return [Span(int(first[place]), int(last[place]), float(scores[place])) for place in order]


def check_config(model: ModelConfig) -> None:
    refuse_pooling(model, "embeddings, and this model answers questions")


def describe_graph(info: ModelInfo) -> tuple[ArraySpec, ...]:
    return (ArraySpec("token_logits", "float32", ("num_tokens", info.output_dim)),)


def describe_output(info: ModelInfo) -> str:
    return "where answers begin and end out"


def make_example(info: ModelInfo, name: str, has_tokenizer: bool, has_chat_template: bool) -> Example:
    asked = {"question": "Where do I live?", "context": "My name is Clara and I live in Berkeley."}
    return Example(f"/models/{name}", {"inputs": asked})


HEAD = Head("question_answering", Work.ENCODE, check_config, describe_graph, describe_output, make_example)
TASK = Task(
    name="question_answering",
    heads=("question_answering",),
    params=QuestionAnsweringParams,
    routes=("POST /models/{name}",),
    reduce=reduce,
)
