"""How near INT8's rows are to FP32's: angles, and what users of embeddings and of classifiers would notice."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

NUM_NEIGHBOURS = 10

AgreesOn = Literal["neighbours", "labels"]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of rows [num_texts, width] against those of FP32. The cosines are percentiles over the texts."""

    num_texts: int = 0
    error: float = 0.0
    """|found - expected| / |expected| of the whole array."""
    cosine_min: float = 1.0
    cosine_p1: float = 1.0
    cosine_median: float = 1.0
    agreement: float = 1.0
    """`neighbours`: the share of each text's ten nearest by FP32 that are among its ten nearest by INT8.
    `labels`: the share of texts whose largest value is at the same place."""
    agrees_on: AgreesOn = "neighbours"


@dataclass(frozen=True, slots=True)
class Bound:
    """What is accurate enough."""

    agreement: float
    cosine_p1: float = -1.0
    error: float = math.inf

    def holds(self, accuracy: Accuracy) -> bool:
        is_near = accuracy.cosine_p1 >= self.cosine_p1 and accuracy.error <= self.error
        return is_near and accuracy.agreement >= self.agreement


BOUNDS: dict[AgreesOn, Bound] = {
    "neighbours": Bound(agreement=0.95, cosine_p1=0.99),
    # No cosine: that of two or three logits near zero says nothing of what is made of them.
    "labels": Bound(agreement=0.99, error=0.1),
}


def measure_accuracy(found: Tensor, expected: Tensor, agrees_on: AgreesOn) -> Accuracy:
    """Of two sets of rows, fp32 [num_texts, width] on the CPU."""
    cosines = functional.cosine_similarity(found, expected, dim=-1)
    least, first, median = torch.quantile(cosines, torch.tensor([0.0, 0.01, 0.5], dtype=cosines.dtype)).tolist()
    agree = count_neighbours if agrees_on == "neighbours" else count_labels
    error = float((found - expected).norm() / expected.norm().clamp(min=torch.finfo(torch.float32).tiny))
    return Accuracy(len(found), error, least, first, median, agree(found, expected), agrees_on)


def count_neighbours(found: Tensor, expected: Tensor) -> float:
    """1 where there are no neighbours."""
    if len(found) < 2:
        return 1.0
    pairs = nearest(found)[:, :, None] == nearest(expected)[:, None, :]
    return float(pairs.any(-1).float().mean())


def nearest(rows: Tensor) -> Tensor:
    """The places of each row's nearest others by cosine: [num_rows, up to NUM_NEIGHBOURS]."""
    rows = functional.normalize(rows, dim=-1)
    similarity = rows @ rows.T
    similarity.fill_diagonal_(-torch.inf)
    return similarity.topk(min(NUM_NEIGHBOURS, len(rows) - 1), dim=1).indices


def count_labels(found: Tensor, expected: Tensor) -> float:
    return float((found.argmax(-1) == expected.argmax(-1)).float().mean())
