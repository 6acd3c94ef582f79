"""What a directory says of low-rank adapters: one for each task that an embedder was trained for. Knows no torch."""

from dataclasses import dataclass
from pathlib import Path

from models.defaults import Keys
from models.keys import ModelDirectoryError, read_object, require_number

TASKS = ("retrieval.query", "retrieval.passage", "separation", "classification", "text-matching")
"""Those of Jina embeddings v3, as its own code and its API call them."""
FILE_NAME = "adapter_config.json"
PEFT_KEYS: Keys = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "alpha_pattern": ({},),
    "rank_pattern": ({},),
    "modules_to_save": (),
    "use_dora": (False,),
    "use_rslora": (False,),
}
"""Keys of PEFT's file that change what is computed, and the values that are followed; null is as good as none."""


@dataclass(frozen=True, slots=True)
class AdaptersConfig:
    """The adapters of `padless::lora`, in the order of their ids."""

    names: tuple[str, ...]
    rank: int
    scales: tuple[float, ...]
    """What each one's product is multiplied by."""
    folders: tuple[str, ...] = ()
    """Where each one is a file of its own (PEFT). These leave out the layers that they do not change."""

    @property
    def count(self) -> int:
        return len(self.names)


def read_adapters(directory: Path, keys: Keys) -> AdaptersConfig | None:
    """None: the model has none. Raises ModelDirectoryError."""
    if keys["model_type"] == "jina_embeddings_v3":
        return read_folders(directory)
    if keys["model_type"] != "xlm-roberta-flash" or "lora_adaptations" not in keys:
        return None
    path, names = directory / "config.json", keys["lora_adaptations"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ModelDirectoryError(f"{path}: lora_adaptations must be a list of names, but is {names!r}")
    if len(set(names)) < len(names):
        raise ModelDirectoryError(f"{path}: lora_adaptations has a name twice: {names!r}")
    rank = require_number(path, keys, "lora_rank")
    return AdaptersConfig(tuple(names), rank, (read_alpha(path, keys) / rank,) * len(names))


def read_folders(directory: Path) -> AdaptersConfig | None:
    """Of transformers' form: a folder for each task, called after it."""
    found = {name: directory / name.replace(".", "_").replace("-", "_") / FILE_NAME for name in TASKS}
    files = {name: path for name, path in found.items() if path.exists()}
    if not files:
        return None
    settings = {path: read_object(path) for path in files.values()}
    for path, keys in settings.items():
        check_peft(path, keys)
    ranks = {require_number(path, keys, "r") for path, keys in settings.items()}
    if len(ranks) > 1:
        raise ModelDirectoryError(
            f"{directory}: adapters of the ranks {', '.join(map(str, sorted(ranks)))} are not supported beside each "
            "other; train them with one"
        )
    (rank,) = ranks
    scales = tuple(read_alpha(path, keys) / rank for path, keys in settings.items())
    return AdaptersConfig(tuple(files), rank, scales, tuple(path.parent.name for path in files.values()))


def check_peft(path: Path, keys: Keys) -> None:
    for name, values in PEFT_KEYS.items():
        if keys.get(name) is not None and keys[name] not in values:
            supported = f"only {values[0]!r} is" if values else "use adapters without it"
            raise ModelDirectoryError(f"{path}: {name} {keys[name]!r} is not supported; {supported}")


def read_alpha(path: Path, keys: Keys) -> float:
    alpha = keys.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise ModelDirectoryError(f"{path}: lora_alpha is {alpha!r}; it must be a number")
    return float(alpha)


def read_instructions(path: Path, keys: Keys) -> dict[str, str]:
    """What stands before the texts of each task. Raises ModelDirectoryError."""
    texts = keys.get("task_instructions") or {}
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ModelDirectoryError(f"{path}: task_instructions must map tasks to texts, but is {texts!r}")
    return texts
