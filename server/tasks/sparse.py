"""Sparse vectors: for each input the tokens of the vocabulary that it is about, with their weights (SPLADE); or those
that it has, with theirs (BGE-M3).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.info import ModelInfo
from runtime.batch import ArraySpec
from server.config import ModelConfig
from server.tasks.head import Example, Head, Work, refuse_pooling
from server.tasks.task import Arrays, Task
from server.wire.job import Ragged, join_rows

Ids = npt.NDArray[np.int32]
Weights = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SparseParams:
    """`skipped_ids`: tokens that have no weight, whatever the model says."""

    skipped_ids: tuple[int, ...] = ()


def reduce(arrays: Arrays, params: SparseParams) -> Arrays:
    """`indices` int32 and `weights` fp32, a row of both for each input: the positive few. NaN is kept, so that it is
    found.
    """
    if "token_weights" in arrays:
        return reduce_tokens(arrays["token_weights"], arrays["input_ids"], params)
    return reduce_logits(arrays["max_logits"].values)


def read_ids(params: SparseParams) -> tuple[str, ...]:
    """Weights of tokens are those of their ids."""
    return ("input_ids",)


def reduce_tokens(weights: Ragged, input_ids: Ragged, params: SparseParams) -> Arrays:
    """Of a token that an input has several times the largest counts. Row by row, by token id."""
    rows = [largest(input_ids.row(row), weights.row(row)[:, 0], params.skipped_ids) for row in range(len(weights))]
    return {"indices": join_rows([ids for ids, _ in rows]), "weights": join_rows([values for _, values in rows])}


def largest(ids: Ids, values: Weights, skipped_ids: tuple[int, ...]) -> tuple[Ids, Weights]:
    is_kept = ~(np.isin(ids, skipped_ids) | (values <= 0))
    ids, values = ids[is_kept], values[is_kept]
    found, places = np.unique(ids, return_inverse=True)
    most = np.zeros(len(found), np.float32)
    np.maximum.at(most, places, values)
    return found, most


def reduce_logits(logits: npt.NDArray[np.float32]) -> Arrays:
    """A weight is log(1 + logit)."""
    rows, indices = np.nonzero(~(logits <= 0))
    splits = np.zeros(len(logits) + 1, np.int32)
    np.cumsum(np.bincount(rows, minlength=len(logits)), out=splits[1:])
    weights = np.log1p(logits[rows, indices])
    return {"indices": Ragged(indices.astype(np.int32), splits), "weights": Ragged(weights, splits)}


def check_config(model: ModelConfig) -> None:
    refuse_pooling(model, "dense embeddings, and this model's are sparse")


def describe_graph(info: ModelInfo) -> tuple[ArraySpec, ...]:
    return (ArraySpec("max_logits", "float32", ("num_seqs", info.output_dim)),)


def describe_weights(info: ModelInfo) -> tuple[ArraySpec, ...]:
    return (ArraySpec("token_weights", "float32", ("num_tokens", 1)),)


def describe_output(info: ModelInfo) -> str:
    return f"weights of {info.output_dim} tokens out"


def make_example(info: ModelInfo, name: str, has_tokenizer: bool, has_chat_template: bool) -> Example:
    return Example("/embed_sparse", {"inputs": "Hello, world" if has_tokenizer else [1, 2, 3]})


def describe_weights_output(info: ModelInfo) -> str:
    return "a weight for each token out"


HEAD = Head("sparse", Work.ENCODE, check_config, describe_graph, describe_output, make_example)
TOKEN_HEAD = Head("token_weights", Work.ENCODE, check_config, describe_weights, describe_weights_output, make_example)
TASK = Task(
    name="sparse",
    heads=("sparse", "token_weights"),
    params=SparseParams,
    routes=("POST /embed_sparse",),
    reduce=reduce,
    reads=read_ids,
)
