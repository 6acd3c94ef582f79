"""config_sentence_transformers.json: the prompts of a model, how much of a vector counts, the activation of scores.

And what config.json says of how much of a vector may be left out.
"""

from dataclasses import dataclass
from pathlib import Path

from models.defaults import Keys
from models.keys import ModelDirectoryError, read_optional, require_number

FILE_NAME = "config_sentence_transformers.json"
MODEL_TYPES = {"embed": "SentenceTransformer", "sparse": "SparseEncoder", "classify": "CrossEncoder"}
"""sentence-transformers' classes by our tasks. It reads the file of another class for none of its own."""


@dataclass(frozen=True, slots=True)
class Prompts:
    texts: dict[str, str]
    """By name."""
    default_name: str | None


def read_settings(directory: Path, task: str) -> Keys:
    """The file's keys; empty where it is for another task, or is not there. Raises ModelDirectoryError.

    sentence-transformers does not look at it either where there is no modules.json.
    """
    keys = read_optional(directory / FILE_NAME) if (directory / "modules.json").exists() else {}
    is_meant = keys.get("model_type", "SentenceTransformer") == MODEL_TYPES.get(task)
    return keys if is_meant else {}


def read_prompts(path: Path, settings: Keys) -> Prompts:
    """Raises ModelDirectoryError where they are no texts by name, or the default is none of them."""
    texts = settings.get("prompts") or {}
    if not isinstance(texts, dict) or any(not isinstance(text, str | None) for text in texts.values()):
        raise ModelDirectoryError(f"{path}: prompts must map names to texts, but is {texts!r}")
    default = settings.get("default_prompt_name")
    if default is not None and default not in texts:
        raise ModelDirectoryError(
            f"{path}: default_prompt_name {default!r} is none of the prompts; there are {', '.join(texts) or 'none'}"
        )
    return Prompts({name: text or "" for name, text in texts.items()}, default)


def read_truncate_dim(path: Path, settings: Keys) -> int | None:
    """How many numbers of a vector count, from its start; None for all."""
    return None if settings.get("truncate_dim") is None else require_number(path, settings, "truncate_dim")


def read_matryoshka_dimensions(path: Path, keys: Keys) -> tuple[int, ...]:
    """Of config.json: the numbers of leading dimensions that a model was trained to do with; empty where it says none.

    Raises ModelDirectoryError where they are no positive whole numbers.
    """
    given = keys.get("matryoshka_dimensions") or []
    if not isinstance(given, list) or any(type(each) is not int or each < 1 for each in given):
        raise ModelDirectoryError(
            f"{path}: matryoshka_dimensions is {given!r}; it must be a list of whole numbers of at least 1"
        )
    return tuple(given)
