"""Token classification: entities in texts, and where they are, as transformers' TokenClassificationPipeline has it."""

from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from models.info import ModelInfo
from runtime.batch import ArraySpec
from server.config import ModelConfig
from server.tasks.classify import Rows, compute_softmax
from server.tasks.head import Example, Head, Work, refuse_pooling
from server.tasks.task import Arrays, Task
from server.text.located import Window
from server.text.tokenizer import Tokenizer

Aggregation = Literal["none", "simple", "first", "average", "max"]
"""Tokens by themselves; neighbours with one label as one; the same of words, which get the label of their first token,
of their tokens' mean scores, or of the token with the highest score."""
Entity = dict[str, str | int | float]


@dataclass(frozen=True, slots=True)
class TokenClassifyParams:
    """Nothing is to be chosen: what clients ask for is made of the logits."""


def reduce(arrays: Arrays, params: TokenClassifyParams) -> Arrays:
    return arrays


class Tagged(NamedTuple):
    """A token, or a word, with its label. `tokens`: their places in the window."""

    label: str
    score: np.float32
    tokens: npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class EntityReader:
    """Makes entities of logits, one way for one model. `ignored`: labels that are left out.

    Its methods are those of the pipeline, but for words: they are put together of what is not ignored only.
    """

    info: ModelInfo
    tokenizer: Tokenizer
    aggregation: Aggregation = "none"
    ignored: Collection[str] = ("O",)

    def read(self, windows: Sequence[Window], rows: Sequence[Rows]) -> Generator[None, None, list[Entity]]:
        """The entities of one text, token by token, as long texts take seconds. `rows`: logits `[num_tokens,
        num_labels]` of each window."""
        entities: list[Entity] = []
        for window, logits in zip(windows, rows, strict=True):
            for entity in self.read_window(window, compute_softmax(logits)):
                if entity is not None:
                    entities.append(entity)
                yield
        return (yield from merge_overlaps(entities)) if len(windows) > 1 else entities

    def read_window(self, window: Window, scores: Rows) -> Iterator[Entity | None]:
        """Entities, and None for what is none, or not yet."""
        if self.aggregation == "none":
            for token in self.tag_tokens(window, scores):
                yield self.describe_token(window, token) if token.label not in self.ignored else None
            return
        is_by_word = self.aggregation != "simple"
        tagged = self.tag_words(window, scores) if is_by_word else self.tag_tokens(window, scores)
        for group in group_neighbours(tagged):
            yield self.describe_group(window, group) if group else None

    def tag_tokens(self, window: Window, scores: Rows) -> Iterator[Tagged]:
        places = np.flatnonzero(~window.is_special)
        best = scores.argmax(axis=1)
        for place in places:
            yield Tagged(self.info.id2label[int(best[place])], scores[place, best[place]], np.array([place]))

    def tag_words(self, window: Window, scores: Rows) -> Iterator[Tagged]:
        places = np.flatnonzero(~window.is_special)
        begins = np.flatnonzero(~window.is_subword[places])
        for tokens in np.split(places, begins[begins > 0]):
            if len(tokens):
                row = self.score_word(scores[tokens])
                best = int(row.argmax())
                yield Tagged(self.info.id2label[best], row[best], tokens)

    def score_word(self, scores: Rows) -> npt.NDArray[np.float32]:
        """`[num_labels]` of its tokens' `[num_tokens, num_labels]`."""
        if self.aggregation == "average":
            mean: npt.NDArray[np.float32] = scores.mean(axis=0)
            return mean
        row: npt.NDArray[np.float32] = scores[scores.max(axis=1).argmax() if self.aggregation == "max" else 0]
        return row

    def describe_token(self, window: Window, token: Tagged) -> Entity:
        place = int(token.tokens[0])
        return {
            "entity": token.label,
            "score": float(token.score),
            "index": place,
            "word": self.spell(window, place),
            "start": int(window.starts[place]),
            "end": int(window.ends[place]),
        }

    def describe_group(self, window: Window, group: Sequence[Tagged]) -> Entity | None:
        """None if it is ignored."""
        label = group[0].label.split("-", 1)[-1]
        if label in self.ignored:
            return None
        return {
            "entity_group": label,
            "score": float(np.mean([tagged.score for tagged in group])),
            "word": self.tokenizer.join_tokens([self.write(window, tagged) for tagged in group]),
            "start": int(window.starts[group[0].tokens[0]]),
            "end": int(window.ends[group[-1].tokens[-1]]),
        }

    def write(self, window: Window, tagged: Tagged) -> str:
        tokens = [self.spell(window, int(place)) for place in tagged.tokens]
        return tokens[0] if self.aggregation == "simple" else self.tokenizer.join_tokens(tokens)

    def spell(self, window: Window, place: int) -> str:
        """Of what the vocabulary lacks, the text's own characters."""
        if window.is_unknown[place]:
            return window.text[window.starts[place] : window.ends[place]]
        return self.tokenizer.name_token(int(window.sequence.input_ids[place]))


def group_neighbours(tagged: Iterator[Tagged]) -> Iterator[list[Tagged]]:
    """Neighbours with one tag, each of them after the first inside of it and not beginning one. An empty list after
    each of them, in the middle of what may be a long group."""
    group: list[Tagged] = []
    for each in tagged:
        begins, tag = split_label(each.label)
        if group and (begins or tag != split_label(group[-1].label)[1]):
            yield group
            group = []
        group.append(each)
        yield []
    if group:
        yield group


def split_label(label: str) -> tuple[bool, str]:
    """Whether it begins an entity, and the entity: of B-PER, I-PER, or PER, which is as good as I-PER."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def merge_overlaps(entities: list[Entity]) -> Generator[None, None, list[Entity]]:
    """In the order of the text; of those that overlap the longest, of equally long ones that with the best score. One
    by one."""
    merged: list[Entity] = []
    for entity in sorted(entities, key=find_start):
        yield
        if not merged or not find_start(merged[-1]) <= find_start(entity) < merged[-1]["end"]:
            merged.append(entity)
        elif measure_entity(entity) > measure_entity(merged[-1]):
            merged[-1] = entity
    return merged


def find_start(entity: Entity) -> Any:
    return entity["start"]


def measure_entity(entity: Any) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]


def check_config(model: ModelConfig) -> None:
    refuse_pooling(model, "embeddings, and this model classifies tokens")


def describe_graph(info: ModelInfo) -> tuple[ArraySpec, ...]:
    return (ArraySpec("token_logits", "float32", ("num_tokens", info.output_dim)),)


def describe_output(info: ModelInfo) -> str:
    return f"{info.output_dim} labels for each token out"


def make_example(info: ModelInfo, name: str, has_tokenizer: bool, has_chat_template: bool) -> Example:
    return Example(f"/models/{name}", {"inputs": "My name is Clara and I live in Berkeley."})


HEAD = Head("token_classify", Work.ENCODE, check_config, describe_graph, describe_output, make_example)
TASK = Task(
    name="token_classify",
    heads=("token_classify",),
    params=TokenClassifyParams,
    routes=("POST /models/{name}",),
    reduce=reduce,
)
