"""Late interaction (ColBERT): a vector for each token of queries and documents, and the scores made of them."""

import numpy as np
import numpy.typing as npt

from models.info import ModelInfo
from server.config import ModelConfig
from server.tasks import token_embed
from server.tasks.head import Example, Head, Work, refuse_pooling
from server.tasks.task import Task
from server.wire.job import Ragged

Rows = npt.NDArray[np.float32]
"""`[num_tokens, dim]`."""

INLINE_BLAS_PRODUCTS = 262_144
"""OpenBLAS wakes no threads for so few multiplications, which would take cores from the engine."""


def score_rows(queries: Ragged, documents: Ragged, *, is_mean: bool) -> npt.NDArray[np.float32]:
    """`[num_documents]`, of one query for all, or of one for each: MaxSim (Khattab & Zaharia, 2020).

    Document by document, so that a score does not depend on the others.
    """
    pairs = ((queries.row(index if len(queries) > 1 else 0), documents.row(index)) for index in range(len(documents)))
    return np.array([score_pair(query, document, is_mean=is_mean) for query, document in pairs], np.float32)


def score_pair(query: Rows, document: Rows, *, is_mean: bool) -> np.float32:
    """For each vector of the query the largest product with one of the document's; their sum, or their mean.

    0 where a side has no vectors: all of its tokens are of those that are skipped.
    """
    if not len(query) or not len(document):
        return np.float32(0)
    step = max(1, INLINE_BLAS_PRODUCTS // query.size)
    nearest = np.max([(document[at : at + step] @ query.T).max(axis=0) for at in range(0, len(document), step)], axis=0)
    score: np.float32 = nearest.mean() if is_mean else nearest.sum()
    return score


def count_products(queries: Ragged, documents: Ragged) -> int:
    """Multiplications that scores take, at most."""
    return int(queries.lengths.max()) * documents.values.size


def check_config(model: ModelConfig) -> None:
    refuse_pooling(model, "one vector of a text, and this model gives one of each token")


def describe_output(info: ModelInfo) -> str:
    return f"{info.output_dim} numbers for each token out, of queries and documents"


def make_example(info: ModelInfo, name: str, has_tokenizer: bool, has_chat_template: bool) -> Example:
    text = "Hello, world" if has_tokenizer else [1, 2, 3]
    return Example("/v1/multi-vector", {"model": name, "input": [text], "input_type": "document"})


HEAD = Head("multi_vector", Work.ENCODE, check_config, token_embed.describe_graph, describe_output, make_example)
TASK = Task(
    name="multi_vector",
    heads=("multi_vector",),
    params=token_embed.TokenEmbedParams,
    routes=("POST /v1/multi-vector",),
    reduce=token_embed.reduce,
    reads=token_embed.read_skipped,
)
