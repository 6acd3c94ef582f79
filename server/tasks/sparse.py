"""Sparse vectors: for each input the tokens of the vocabulary that it is about, with their weights (SPLADE)."""

from dataclasses import dataclass

import numpy as np

from models.info import ModelInfo
from runtime.batch import ArraySpec
from server.config import ConfigError, ModelConfig
from server.tasks.head import Example, Head, Work
from server.tasks.task import Arrays, Task
from server.wire.job import Ragged


@dataclass(frozen=True, slots=True)
class SparseParams:
    """Nothing is to be chosen."""


def reduce(arrays: Arrays, params: SparseParams) -> Arrays:
    """`indices` int32 and `weights` fp32, a row of both for each input: of thousands of logits the positive few.

    A weight is log(1 + logit). NaN is kept, so that it is found.
    """
    logits = arrays["max_logits"].values
    rows, indices = np.nonzero(~(logits <= 0))
    splits = np.zeros(len(logits) + 1, np.int32)
    np.cumsum(np.bincount(rows, minlength=len(logits)), out=splits[1:])
    weights = np.log1p(logits[rows, indices])
    return {"indices": Ragged(indices.astype(np.int32), splits), "weights": Ragged(weights, splits)}


def check_config(model: ModelConfig) -> None:
    if model.pooling != "auto" or model.normalize is not None:
        raise ConfigError(
            f"model {model.name}: pooling and normalize are for dense embeddings, and this model's are sparse. Leave "
            "them out"
        )


def describe_graph(info: ModelInfo) -> tuple[ArraySpec, ...]:
    return (ArraySpec("max_logits", "float32", ("num_seqs", info.output_dim)),)


def describe_output(info: ModelInfo) -> str:
    return f"weights of {info.output_dim} tokens out"


def make_example(info: ModelInfo, name: str, has_tokenizer: bool, has_chat_template: bool) -> Example:
    return Example("/embed_sparse", {"inputs": "Hello, world" if has_tokenizer else [1, 2, 3]})


HEAD = Head("sparse", Work.ENCODE, check_config, describe_graph, describe_output, make_example)
TASK = Task(name="sparse", heads=("sparse",), params=SparseParams, routes=("POST /embed_sparse",), reduce=reduce)
