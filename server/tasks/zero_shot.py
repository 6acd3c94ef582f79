"""Zero-shot classification with a classifier of natural language inference: does a text entail what is said of it?

Arithmetic as in transformers' ZeroShotClassificationPipeline. The job is a classification of pairs, texts times labels.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.info import ModelInfo
from server.errors import InvalidField
from server.tasks.classify import Rows, compute_softmax

PLACE = "{}"


def find_entailment(info: ModelInfo) -> int:
    """The first label whose name begins with `entail`. Raises InvalidField where there is none: transformers then
    takes the last one, whatever it means."""
    found = next((index for index, name in info.id2label.items() if name.lower().startswith("entail")), None)
    if found is None:
        raise InvalidField(
            f"candidate_labels need a model with a label 'entailment'; it has {', '.join(info.id2label.values())}",
            param="candidate_labels",
        )
    return found


def split_labels(given: str | Sequence[str]) -> list[str]:
    """Of a text, what its commas separate. Raises InvalidField where nothing is left."""
    labels = [label for part in given.split(",") if (label := part.strip())] if isinstance(given, str) else list(given)
    if not labels:
        raise InvalidField("candidate_labels must not be empty", param="candidate_labels")
    return labels


def write_hypotheses(template: str, labels: Sequence[str]) -> list[str]:
    """`{}` stands for the label, once; no other part of Python's format strings is understood. Raises InvalidField."""
    if template.count(PLACE) != 1:
        raise InvalidField("hypothesis_template must have {} once, where the label goes", param="hypothesis_template")
    return [template.replace(PLACE, label) for label in labels]


def score_labels(logits: Rows, entailment: int, *, multi_label: bool) -> Rows:
    """`[num_texts, num_labels]` of logits `[num_texts, num_labels, num_classes]`.

    Each label for itself, against the contradiction, or all of them against each other.
    """
    num_texts, num_labels, _ = logits.shape
    if not multi_label and num_labels > 1:
        return compute_softmax(logits[..., entailment])
    contradiction = -1 if entailment == 0 else 0
    pairs = logits[..., [contradiction, entailment]].reshape(-1, 2)
    return compute_softmax(pairs)[:, 1].reshape(num_texts, num_labels)


def rank(scores: npt.NDArray[np.float32], labels: Sequence[str]) -> list[dict[str, str | float]]:
    """Best first; of equal ones the later label, as transformers has it."""
    return [{"label": labels[index], "score": float(scores[index])} for index in scores.argsort()[::-1]]
