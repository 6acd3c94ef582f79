"""How near a precision's rows are to FP32's: angles, and what users of embeddings and of classifiers would notice."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from runtime.batch import FloatArray
from runtime.config import AccuracyLevel

NUM_NEIGHBOURS = 10
WORST_ERROR = 1e6

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
    """`neighbours`: the share of each text's ten nearest by FP32 that are among its ten nearest now.
    `labels`: the share of texts whose largest value is at the same place."""
    agrees_on: AgreesOn = "neighbours"

    def __str__(self) -> str:
        if self.agrees_on == "labels":
            return f"{self.agreement:.1%} of labels the same, logits off by {self.error:.2%}"
        return f"cosine {self.cosine_p1:.4f} at the 1st percentile, {self.agreement:.1%} of the nearest texts the same"


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
"""What `padless quantize` aims at."""

ON_SAMPLES: dict[AccuracyLevel, dict[AgreesOn, Bound]] = {
    "strict": {
        "neighbours": Bound(agreement=0.98, cosine_p1=0.9999),
        "labels": Bound(agreement=0.99, error=0.01),
    },
    "balanced": {
        "neighbours": Bound(agreement=0.98, cosine_p1=0.995),
        "labels": Bound(agreement=0.99, error=0.02),
    },
    "fast": {
        "neighbours": Bound(agreement=0.9, cosine_p1=0.98),
        "labels": Bound(agreement=0.97, error=0.2),
    },
}
"""What `engine.accuracy` admits where texts of the model's user are not known; measured in docs/decisions/0010."""
ON_OWN_TEXTS = ON_SAMPLES | {"balanced": BOUNDS}
"""And where they are: what `padless quantize` promises is enough, because ours are easier to tell apart."""


def measure_accuracy(found: FloatArray, expected: FloatArray, agrees_on: AgreesOn) -> Accuracy:
    """Of two sets of rows [num_texts, width]. What is no number is as far off as can be, in numbers that JSON has."""
    if not np.isfinite(found).all():
        return Accuracy(len(found), WORST_ERROR, -1.0, -1.0, -1.0, 0.0, agrees_on)
    cosines = (scale_rows(found) * scale_rows(expected)).sum(-1)
    least, first, median = np.quantile(cosines, [0.0, 0.01, 0.5]).tolist()
    agree = count_neighbours if agrees_on == "neighbours" else count_labels
    error = np.linalg.norm(found - expected) / max(np.linalg.norm(expected), np.finfo(np.float32).tiny)
    return Accuracy(len(found), float(error), least, first, median, agree(found, expected), agrees_on)


def scale_rows(rows: FloatArray) -> FloatArray:
    """To length 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), np.finfo(np.float32).tiny)


def count_neighbours(found: FloatArray, expected: FloatArray) -> float:
    """1 where there are no neighbours."""
    if len(found) < 2:
        return 1.0
    pairs = nearest(found)[:, :, None] == nearest(expected)[:, None, :]
    return float(pairs.any(-1).mean())


def nearest(rows: FloatArray) -> npt.NDArray[Any]:
    """The places of each row's nearest others by cosine: [num_rows, up to NUM_NEIGHBOURS]."""
    rows = scale_rows(rows)
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, : min(NUM_NEIGHBOURS, len(rows) - 1)]


def count_labels(found: FloatArray, expected: FloatArray) -> float:
    return float((found.argmax(-1) == expected.argmax(-1)).mean())
