"""What a model directory says of itself, read without torch: task, pooling, limits, labels.

The HTTP side needs no more than this; `models.config` reads the architecture for the engine side.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Model types whose positions start behind the padding id: that many rows of the table are not for tokens."""

POOLING_KEYS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}


class ModelDirectoryError(ValueError):
    """The directory cannot be served; the text names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The public face of a model directory."""

    architecture: str
    task: str
    """`embed` or `classify`."""
    vocab_size: int
    type_vocab_size: int
    """1 where the model has no token types."""
    max_input_tokens: int
    """Special tokens included."""
    output_dim: int
    id2label: dict[int, str] = field(default_factory=dict)
    pooling: str = "mean"
    normalize: bool = False
    dense: tuple[str, ...] = ()
    """Folders of sentence-transformers Dense modules, in order."""
    problem_type: str = "single_label_classification"
    """Classifiers: softmax for `single_label_classification`, sigmoid for `multi_label_classification`."""


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises ModelDirectoryError where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelDirectoryError(f"{path}: {error.strerror}; a model directory needs this file") from None
    except ValueError as error:
        raise ModelDirectoryError(f"{path}: not valid JSON: {error}") from None


def read_info(
    directory: Path, *, task: str = "auto", pooling: str = "auto", normalize: bool | None = None
) -> ModelInfo:
    """Read config.json and the sentence-transformers files; arguments other than `auto` and None win over them.

    Raises ModelDirectoryError where the files contradict each other or the arguments.
    """
    keys = read_json(directory / "config.json")
    architecture = (keys.get("architectures") or ["unknown"])[0]
    is_classifier = architecture.endswith("ForSequenceClassification")
    if task == "auto":
        task = "classify" if is_classifier else "embed"
    if task == "classify" and not is_classifier:
        raise ModelDirectoryError(
            f"{directory / 'config.json'}: task classify needs a classification head, but the architecture is "
            f"{architecture}. Set task to embed"
        )
    modules = read_modules(directory) if task == "embed" else ModuleChain()
    labels = read_labels(keys)
    hidden_size = int(keys.get("hidden_size") or keys.get("dim") or 0)
    return ModelInfo(
        architecture=architecture,
        task=task,
        vocab_size=int(keys.get("vocab_size", 0)),
        type_vocab_size=int(keys.get("type_vocab_size") or 1),
        max_input_tokens=read_max_input_tokens(directory, keys),
        output_dim=len(labels) if task == "classify" else modules.output_dim or hidden_size,
        id2label=labels if task == "classify" else {},
        pooling=modules.pooling if pooling == "auto" else pooling,
        normalize=modules.normalize if normalize is None else normalize,
        dense=modules.dense,
        problem_type=keys.get("problem_type") or "single_label_classification",
    )


@dataclass(frozen=True, slots=True)
class ModuleChain:
    """What modules.json says comes after the Transformer."""

    pooling: str = "mean"
    normalize: bool = False
    dense: tuple[str, ...] = ()
    output_dim: int = 0


def read_modules(directory: Path) -> ModuleChain:
    """The sentence-transformers chain; plain mean pooling where there is no modules.json."""
    path = directory / "modules.json"
    if not path.exists():
        return ModuleChain()
    pooling, normalize, dense, output_dim = "mean", False, [], 0
    for module in read_json(path):
        kind = str(module["type"]).rpartition(".")[2]
        if kind == "Pooling":
            pooling = read_pooling(directory / module["path"] / "config.json")
        elif kind == "Dense":
            dense.append(str(module["path"]))
            output_dim = int(read_json(directory / module["path"] / "config.json")["out_features"])
        elif kind == "Normalize":
            normalize = True
        elif kind not in ("Transformer", "Dropout"):
            raise ModelDirectoryError(
                f"{path}: the module {module['type']!r} is not supported; supported are Transformer, Pooling, Dense, "
                "Normalize"
            )
    return ModuleChain(pooling, normalize, tuple(dense), output_dim)


def read_pooling(path: Path) -> str:
    keys = read_json(path)
    if "pooling_mode" in keys:  # sentence-transformers 5 and later
        modes = [keys["pooling_mode"]] if isinstance(keys["pooling_mode"], str) else list(keys["pooling_mode"])
        modes = ["last" if mode == "lasttoken" else mode for mode in modes]
    else:
        modes = [POOLING_KEYS.get(key, key) for key, value in keys.items() if key.startswith("pooling_mode_") and value]
    if len(modes) != 1 or modes[0] not in POOLING_KEYS.values():
        raise ModelDirectoryError(
            f"{path}: pooling {modes} is not supported; exactly one of {', '.join(POOLING_KEYS.values())} is"
        )
    return str(modes[0])


def read_max_input_tokens(directory: Path, keys: dict[str, Any]) -> int:
    """sentence-transformers' own limit where there is one, else as many tokens as the model has positions."""
    positions = int(keys.get("max_position_embeddings") or 512)
    if str(keys.get("model_type")) in OFFSET_POSITIONS:
        positions -= int(keys.get("pad_token_id", 1)) + 1
    path = directory / "sentence_bert_config.json"
    limit = read_json(path).get("max_seq_length") if path.exists() else None
    return min(int(limit), positions) if limit else positions


def read_labels(keys: dict[str, Any]) -> dict[int, str]:
    labels = keys.get("id2label") or {index: f"LABEL_{index}" for index in range(int(keys.get("num_labels", 2)))}
    return {int(index): str(label) for index, label in sorted(labels.items(), key=lambda item: int(item[0]))}
