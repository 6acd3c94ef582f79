"""Ranking: how well each document answers a query. A cross-encoder reads both at once and gives a logit; of an embedder
it is the cosine of their vectors, of a ColBERT what those of their tokens have in common.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.info import ModelInfo
from server.tasks import classify, embed, multi_vector
from server.tasks.task import Arrays, Task

Rows = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]
"""`[n]`, higher is better."""
Scale = Literal["raw", "sigmoid", "own"]
"""What is made of a cross-encoder's logit: nothing; a number between 0 and 1; what its directory wants."""

SHORTEST = 1e-12
"""A vector of nothing but zeros has the cosine 0 to all others."""


@dataclass(frozen=True, slots=True)
class RerankParams:
    """Nothing is to be chosen: scores are made of what the graph gives."""


def reduce(arrays: Arrays, params: RerankParams) -> Arrays:
    return arrays


def is_cross_encoder(info: ModelInfo) -> bool:
    """It reads query and document at once."""
    return info.task == classify.HEAD.name


def suits(info: ModelInfo) -> bool:
    """Of several labels none says how well one text answers another."""
    return not is_cross_encoder(info) or info.output_dim == 1


def score_logits(logits: Rows, info: ModelInfo, scale: Scale) -> Scores:
    """`[n, 1]` to `[n]`."""
    if scale == "sigmoid":
        logits = classify.compute_sigmoid(logits)
    elif scale == "own":
        logits = classify.compute_scores(logits, info)
    return logits[:, 0]


def compute_cosines(queries: Rows, documents: Rows) -> Scores:
    """Row by row, `[n, dim]` or `[1, dim]` and `[n, dim]` to `[n]`. Not by BLAS, whose threads would wake for it."""
    products = np.einsum("ij,ij->i", np.broadcast_to(queries, documents.shape), documents)
    lengths = [np.sqrt(np.einsum("ij,ij->i", rows, rows)) for rows in (queries, documents)]
    cosines: Scores = products / np.maximum(lengths[0] * lengths[1], np.float32(SHORTEST))
    return cosines


def rank_scores(scores: Scores) -> list[int]:
    """Indices, best first; equal ones in their order."""
    order: list[int] = np.argsort(-scores, kind="stable").tolist()
    return order


TASK = Task(
    name="rerank",
    heads=(classify.HEAD.name, embed.HEAD.name, multi_vector.HEAD.name),
    params=RerankParams,
    routes=("POST /rerank", "POST /v1/rerank", "POST /score"),
    reduce=reduce,
    suits=suits,
)
