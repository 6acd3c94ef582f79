"""The arithmetic between a model's output and an answer, in one place: vectors, scores, their order."""

import binascii

import numpy as np
import numpy.typing as npt

from models.info import ModelInfo
from server.errors import InvalidAnswer, InvalidField

Rows = npt.NDArray[np.float32]


def check_finite(values: Rows) -> None:
    """JSON has no NaN, and a client could not use one. Raises InvalidAnswer naming the rows."""
    if np.isfinite(values).all():
        return
    rows = np.flatnonzero(~np.isfinite(values).all(axis=1))
    shown = ", ".join(str(row) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
    raise InvalidAnswer(f"the model computed NaN or infinity for {len(rows)} of {len(values)} inputs (index {shown})")


def check_dimensions(dimensions: int | None, info: ModelInfo) -> None:
    """Raises InvalidField where the client wants more dimensions than the model has."""
    if dimensions is not None and dimensions > info.output_dim:
        raise InvalidField(
            f"dimensions is {dimensions}; this model's vectors have {info.output_dim}", param="dimensions"
        )


def shorten_embeddings(values: Rows, dimensions: int | None) -> Rows:
    """The first `dimensions` columns, scaled to length 1 again; all of them, as they are, for None."""
    if dimensions is None:
        return values
    kept = values[:, :dimensions]
    norms = np.sqrt(np.einsum("ij,ij->i", kept, kept, dtype=np.float64))
    return np.ascontiguousarray(kept / np.maximum(norms, 1e-12)[:, None], dtype=np.float32)


def encode_base64(row: Rows) -> str:
    """Little-endian float32, what OpenAI's clients decode."""
    return binascii.b2a_base64(row.astype("<f4", copy=False).tobytes(), newline=False).decode("ascii")


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
