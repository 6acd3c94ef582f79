"""What a directory says of languages: how a translator is told which one it reads, and which one it is to write.

Knows no torch. The tokens of languages are the tokenizer's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from models.defaults import Keys
from models.keys import ModelDirectoryError, read_object
from models.sentencepiece_classes import SENTENCEPIECE_CLASSES

TASK_PREFIX = "translation_"
"""Of names in `task_specific_params`, as `translation_en_to_de`."""


@dataclass(frozen=True, slots=True)
class TranslationInfo:
    """`style`: where languages are named. `prefix`: the source's token before the text, and the first token of the
    answer is the target's (M2M-100, NLLB, mBART-50). `suffix`: the source's behind the text, and the answer goes on
    from the target's (mBART). `target_prefix`: the target's before the text, if the model has several (Marian).
    `words`: in a sentence before the text (T5). `none`: nowhere."""

    style: str
    source_language: str = ""
    """As the model writes it; what transformers takes where nothing is said, or empty."""
    target_language: str = ""
    task_prefixes: Mapping[str, str] = field(default_factory=dict)
    """Of `words`: what stands before the text, by the names of `task_specific_params`."""
    task_names: tuple[str, ...] = ()
    """All of these, also those that are told by no words."""

    @property
    def pair_prefixes(self) -> Mapping[tuple[str, str], str]:
        """Of those that translate, by source and target."""
        found = {}
        for name, prefix in self.task_prefixes.items():
            source, between, target = name.removeprefix(TASK_PREFIX).partition("_to_")
            if name.startswith(TASK_PREFIX) and between:
                found[source, target] = prefix
        return found


def read_translation(folder: Path) -> TranslationInfo:
    """Raises ModelDirectoryError."""
    path = folder / "tokenizer_config.json"
    tokenizer = read_object(path) if path.exists() else {}
    tasks = read_tasks(folder / "config.json")
    prefixes = list_prefixes(tasks)
    kind = SENTENCEPIECE_CLASSES.get(str(tokenizer.get("tokenizer_class", "")).removesuffix("Fast"))
    place = "none" if kind is None else kind.language_place
    style = "words" if prefixes and place == "none" else place
    if tokenizer.get("legacy_behaviour") is True and style == "prefix":
        raise ModelDirectoryError(
            f"{path}: legacy_behaviour puts the language behind the text, as NLLB was once run by mistake; that is not "
            "supported. Set it to false"
        )
    return TranslationInfo(
        style,
        read_language(path, tokenizer, "src_lang", "source_lang") or ("" if kind is None else kind.source_language),
        read_language(path, tokenizer, "tgt_lang", "target_lang"),
        prefixes,
        tuple(tasks),
    )


def read_language(path: Path, keys: Keys, *names: str) -> str:
    for name in names:
        value = keys.get(name)
        if value is not None and not isinstance(value, str):
            raise ModelDirectoryError(f"{path}: {name} is {value!r}; it must be the name of a language")
        if value:
            return value
    return ""


def read_tasks(path: Path) -> Keys:
    given = read_object(path).get("task_specific_params") or {}
    if not isinstance(given, dict):
        raise ModelDirectoryError(f"{path}: task_specific_params is {given!r}; it must be an object")
    return given


def list_prefixes(tasks: Keys) -> dict[str, str]:
    """Of those that are told by one; summarizers of other families have settings there as well, but no words."""
    prefixes = {name: task.get("prefix") for name, task in tasks.items() if isinstance(task, dict)}
    return {name: prefix for name, prefix in prefixes.items() if isinstance(prefix, str) and prefix}
