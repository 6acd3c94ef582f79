"""What a classifier's directory says of its numbers: the labels' names, and what makes scores of logits."""

from pathlib import Path

from models.defaults import Keys
from models.keys import ModelDirectoryError, require_number, require_torch_class

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
SCORE_ACTIVATIONS = {"Identity": "identity", "Sigmoid": "sigmoid"}


def read_labels(path: Path, keys: Keys) -> dict[int, str]:
    """From 0 on, in order. Raises ModelDirectoryError where numbers are missing."""
    num_labels = require_number(path, keys, "num_labels") if "num_labels" in keys else 2
    labels = keys.get("id2label") or {index: f"LABEL_{index}" for index in range(num_labels)}
    if not isinstance(labels, dict) or sorted(map(str, labels)) != sorted(map(str, range(len(labels)))):
        raise ModelDirectoryError(f"{path}: id2label must map the numbers from 0 on to names, but is {labels!r}")
    return {int(index): str(labels[index]) for index in sorted(labels, key=int)}


def read_problem_type(path: Path, keys: Keys) -> str:
    problem_type = keys.get("problem_type") or PROBLEM_TYPES[0]
    if problem_type not in PROBLEM_TYPES:
        raise ModelDirectoryError(
            f"{path}: problem_type {problem_type!r} is not supported; supported are {', '.join(PROBLEM_TYPES)}"
        )
    return str(problem_type)


def read_score_activation(path: Path, keys: Keys, settings_path: Path, settings: Keys) -> str | None:
    """A cross-encoder's own: `identity` or `sigmoid`; None where it names none.

    As sentence-transformers looks for it: its own file (version 6), its object in config.json (4), its key there (2).
    Raises ModelDirectoryError for others.
    """
    places = (
        (settings_path, settings, "activation_fn"),
        (path, keys.get("sentence_transformers") or {}, "activation_fn"),
        (path, keys, "sbert_ce_default_activation_function"),
    )
    for file, found, name in places:
        if not isinstance(found, dict):
            raise ModelDirectoryError(f"{file}: sentence_transformers is {found!r}; it must be an object")
        if found.get(name) is not None:
            return require_torch_class(file, found, name, SCORE_ACTIVATIONS)
    return None
