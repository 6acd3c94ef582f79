"""What a model directory says of itself, read without torch: task, pooling, limits, labels.

The HTTP side needs no more than this; `models.config` reads the architecture for the engine side.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.defaults import DEFAULTS, OFFSET_POSITIONS, Keys, complete_keys

CLASSIFIER_SUFFIX = "ForSequenceClassification"
GENERATOR_SUFFIXES = ("ForCausalLM", "LMHeadModel")
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification")

POOLING_KEYS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
MODULE_ORDER = ("Transformer", "Pooling", "Dense", "Normalize")
OWN_LIMITS = "sentence_bert_config.json"


class ModelDirectoryError(ValueError):
    """The directory cannot be served; the text names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The public face of a model directory."""

    architecture: str
    task: str
    """`embed`, `classify` or `generate`."""
    vocab_size: int
    type_vocab_size: int
    """1 where the model has no token types."""
    max_input_tokens: int
    """Special tokens included. Generators: the context, what is generated included."""
    output_dim: int
    id2label: dict[int, str] = field(default_factory=dict)
    pooling: str = "mean"
    normalize: bool = False
    dense: tuple[str, ...] = ()
    """Folders of sentence-transformers Dense modules, in order."""
    do_lower_case: bool = False
    """sentence-transformers lower-cases the text itself, whatever its tokenizer does."""
    problem_type: str = "single_label_classification"
    """Classifiers: softmax for `single_label_classification`, sigmoid for `multi_label_classification`."""
    eos_token_ids: tuple[int, ...] = ()
    """Generators: the tokens that end an answer."""


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises ModelDirectoryError where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelDirectoryError(f"{path}: {error.strerror}; a model directory needs this file") from None
    except ValueError as error:
        raise ModelDirectoryError(f"{path}: not valid JSON: {error}") from None


def read_object(path: Path) -> Keys:
    """Parse a JSON file that holds an object."""
    keys = read_json(path)
    if not isinstance(keys, dict):
        raise ModelDirectoryError(f"{path}: must hold a JSON object, not {type(keys).__name__}")
    return keys


def read_keys(directory: Path) -> Keys:
    """config.json completed with the defaults of its model type. Raises ModelDirectoryError for types not served."""
    path = directory / "config.json"
    keys = read_object(path)
    model_type = keys.get("model_type")
    if model_type not in DEFAULTS:
        raise ModelDirectoryError(f"{path}: model_type {model_type!r} is not served; served are {', '.join(DEFAULTS)}")
    return complete_keys(keys)


def require_number(path: Path, keys: Keys, name: str, *, least: int = 1) -> int:
    """A whole number of at least `least`. Raises ModelDirectoryError naming the key."""
    if name not in keys:
        raise ModelDirectoryError(f"{path}: the key {name!r} is missing")
    value = keys[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ModelDirectoryError(f"{path}: {name} is {value!r}; it must be a whole number of at least {least}")
    return value


def read_info(
    directory: Path, *, task: str = "auto", pooling: str = "auto", normalize: bool | None = None
) -> ModelInfo:
    """Read config.json and the sentence-transformers files; arguments other than `auto` and None win over them.

    Raises ModelDirectoryError where the files contradict each other or the arguments.
    """
    path = directory / "config.json"
    keys = read_keys(directory)
    architecture = read_architecture(keys)
    task = choose_task(path, architecture, task)
    modules = read_modules(directory) if task == "embed" else ModuleChain()
    labels = read_labels(path, keys) if task == "classify" else {}
    vocab_size = require_number(path, keys, "vocab_size")
    output_dim = vocab_size if task == "generate" else len(labels) or modules.output_dim
    return ModelInfo(
        architecture=architecture,
        task=task,
        vocab_size=vocab_size,
        type_vocab_size=require_number(path, keys, "type_vocab_size", least=0) or 1,
        max_input_tokens=read_max_input_tokens(directory, keys),
        do_lower_case=bool(read_own_limits(directory).get("do_lower_case")),
        output_dim=output_dim or require_number(path, keys, "hidden_size"),
        id2label=labels,
        pooling=modules.pooling if pooling == "auto" else pooling,
        normalize=modules.normalize if normalize is None else normalize,
        dense=modules.dense,
        problem_type=read_problem_type(path, keys) if task == "classify" else PROBLEM_TYPES[0],
        eos_token_ids=read_eos_token_ids(directory, keys) if task == "generate" else (),
    )


def choose_task(path: Path, architecture: str, task: str) -> str:
    """What the checkpoint's head is for, where `task` is `auto`. Raises ModelDirectoryError where it lacks the head."""
    heads = {
        "classify": architecture.endswith(CLASSIFIER_SUFFIX),
        "generate": architecture.endswith(GENERATOR_SUFFIXES),
    }
    if task == "auto":
        return next((name for name, is_there in heads.items() if is_there), "embed")
    if not heads.get(task, True):
        kind = "classification" if task == "classify" else "language model"
        raise ModelDirectoryError(
            f"{path}: task {task} needs a {kind} head, but the architecture is {architecture}. Set task to embed"
        )
    return task


def read_eos_token_ids(directory: Path, keys: Keys) -> tuple[int, ...]:
    """Of generation_config.json, or of config.json where it has none; and the tokenizer's `eos_token` beside them.

    Chat models often end their turns with another token, and name it in one of these places only. Empty where none
    has any. Raises ModelDirectoryError.
    """
    path = directory / "generation_config.json"
    given = read_object(path).get("eos_token_id") if path.exists() else None
    if given is None:
        path, given = directory / "config.json", keys.get("eos_token_id")
    ids = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in ids):
        raise ModelDirectoryError(f"{path}: eos_token_id is {given!r}; it must be a token id or a list of them")
    return tuple(dict.fromkeys([*ids, *find_eos_token(directory)]))


def find_eos_token(directory: Path) -> list[int]:
    """The id of tokenizer_config.json's `eos_token` among the added tokens; empty where there is none."""
    path = directory / "tokenizer_config.json"
    config = read_object(path) if path.exists() else {}
    token = config.get("eos_token")
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
        return []
    given = config.get("added_tokens_decoder")
    if isinstance(given, dict):
        pairs = [(int(key), item) for key, item in given.items() if key.isdecimal()]
    else:
        path = directory / "tokenizer.json"
        listed = read_object(path).get("added_tokens") if path.exists() else None
        pairs = [(item.get("id"), item) for item in listed or []]
    return [token_id for token_id, item in pairs if item.get("content") == content][:1]


def read_architecture(keys: Keys) -> str:
    return str((keys.get("architectures") or ["unknown"])[0])


def read_max_input_tokens(directory: Path, keys: Keys) -> int:
    """sentence-transformers' own limit where there is one, else as many tokens as the model has positions."""
    positions = require_number(directory / "config.json", keys, "max_position_embeddings")
    if keys["model_type"] in OFFSET_POSITIONS:
        positions -= require_number(directory / "config.json", keys, "pad_token_id", least=0) + 1
    own = read_own_limits(directory)
    if own.get("max_seq_length") is None:
        return positions
    return min(require_number(directory / OWN_LIMITS, own, "max_seq_length"), positions)


def read_own_limits(directory: Path) -> Keys:
    """sentence-transformers' file about the text it takes; empty where there is none."""
    path = directory / OWN_LIMITS
    return read_object(path) if path.exists() else {}


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
    pairs = list_modules(path)
    kinds = [kind for kind, _ in pairs]
    folders = {kind: [directory / folder for other, folder in pairs if other == kind] for kind in MODULE_ORDER}
    pooling, output_dim = "mean", 0
    for folder in folders["Pooling"]:
        pooling = read_pooling(folder / "config.json")
    for folder in folders["Dense"]:
        output_dim = require_number(folder / "config.json", read_object(folder / "config.json"), "out_features")
    dense = tuple(folder for kind, folder in pairs if kind == "Dense")
    return ModuleChain(pooling, "Normalize" in kinds, dense, output_dim)


def list_modules(path: Path) -> list[tuple[str, str]]:
    """(class, folder) in the order of modules.json, less Dropout. Raises ModelDirectoryError for what we have not."""
    try:
        modules = [(str(module["type"]), str(module["path"])) for module in read_json(path)]
    except (KeyError, TypeError):
        raise ModelDirectoryError(f"{path}: must be a list of objects with the keys type and path") from None
    pairs = [(kind.rpartition(".")[2], folder) for kind, folder in modules]
    for (kind, folder), (name, _) in zip(modules, pairs, strict=True):
        if name not in (*MODULE_ORDER, "Dropout") or not kind.startswith("sentence_transformers."):
            raise ModelDirectoryError(
                f"{path}: the module {kind!r} is not supported; supported are sentence-transformers' "
                f"{', '.join(MODULE_ORDER)}"
            )
        if Path(folder).name != folder:
            raise ModelDirectoryError(f"{path}: the folder {folder!r} is not directly inside the model directory")
        if name == "Transformer" and folder:
            raise ModelDirectoryError(f"{path}: the Transformer is in the folder {folder!r}; use that as the source")
    pairs = [pair for pair in pairs if pair[0] != "Dropout"]
    check_order(path, [name for name, _ in pairs])
    return pairs


def check_order(path: Path, names: Sequence[str]) -> None:
    """Transformer, Pooling, any number of Dense, at most one Normalize."""
    is_sorted = list(names) == sorted(names, key=MODULE_ORDER.index)
    if not is_sorted or any(names.count(name) > 1 for name in names if name != "Dense"):
        raise ModelDirectoryError(
            f"{path}: the modules {', '.join(names)} are not supported in this order; it must be "
            f"{', '.join(MODULE_ORDER)}, and only Dense may be there more than once"
        )


def read_pooling(path: Path) -> str:
    keys = read_object(path)
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
