"""Classification: scores of labels for each input, which is a text or a pair of texts."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.info import ModelInfo
from runtime.batch import ArraySpec
from server.config import ModelConfig
from server.tasks.head import Example, Head, Work, refuse_pooling
from server.tasks.task import Arrays, Task

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ClassifyParams:
    """Nothing is to be chosen: what clients ask for is made of the logits."""


def reduce(arrays: Arrays, params: ClassifyParams) -> Arrays:
    return arrays


def compute_softmax(logits: Rows) -> Rows:
    """Row-wise. The largest is subtracted first, so that nothing overflows."""
    exps: Rows = np.exp(logits - logits.max(axis=1, keepdims=True))
    exps /= exps.sum(axis=1, keepdims=True)
    return exps


def compute_sigmoid(logits: Rows) -> Rows:
    """Element-wise, with the exponential of the negative absolute value only, so that nothing overflows."""
    exps: Rows = np.exp(-np.abs(logits))
    scores: Rows = np.where(logits >= 0, np.float32(1), exps) / (np.float32(1) + exps)
    return scores


def compute_scores(logits: Rows, info: ModelInfo) -> Rows:
    """[n, num_labels] logits to scores: by the directory's own activation where it names one, else by problem type.

    A softmax over a single label would always be 1, so that is a sigmoid too; regression has its logits for scores.
    """
    if info.activation == "identity" or (info.activation is None and info.problem_type == "regression"):
        return logits
    is_multi_label = info.problem_type == "multi_label_classification" or logits.shape[1] == 1
    return compute_sigmoid(logits) if info.activation == "sigmoid" or is_multi_label else compute_softmax(logits)


def rank_labels(scores: Rows, info: ModelInfo) -> list[list[dict[str, str | float]]]:
    """Per row, labels with their scores, best first; equal scores in the order of the labels."""
    names = [info.id2label.get(index, f"LABEL_{index}") for index in range(scores.shape[1])]
    order = np.argsort(-scores, axis=1, kind="stable")
    return [
        [{"score": float(row[index]), "label": names[index]} for index in ranks]
        for row, ranks in zip(scores, order, strict=True)
    ]


def check_config(model: ModelConfig) -> None:
    refuse_pooling(model, "embeddings, and this model classifies")


def describe_graph(info: ModelInfo) -> tuple[ArraySpec, ...]:
    return (ArraySpec("logits", "float32", ("num_seqs", info.output_dim)),)


def describe_output(info: ModelInfo) -> str:
    return f"{info.output_dim} labels out"


def make_example(info: ModelInfo, name: str, has_tokenizer: bool, has_chat_template: bool) -> Example:
    if info.output_dim == 1:
        return Example("/rerank", {"query": "What is a panda?", "texts": ["A bear that eats bamboo.", "A small car."]})
    return Example("/predict", {"inputs": "Hello, world"})


def suits(info: ModelInfo) -> bool:
    """What judges pairs has no labels for texts."""
    return not info.answer_token_ids and not info.question_format


HEAD = Head("classify", Work.ENCODE, check_config, describe_graph, describe_output, make_example)
TASK = Task(
    name="classify",
    heads=("classify",),
    params=ClassifyParams,
    routes=("POST /predict", "POST /classify"),
    reduce=reduce,
    suits=suits,
)
