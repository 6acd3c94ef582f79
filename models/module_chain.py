"""sentence-transformers' modules.json: what comes after the Transformer, in the files of its versions 2 to 6."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from models.defaults import FLASH, Keys
from models.keys import ModelDirectoryError, read_json, read_keys, read_object, read_optional, require_number

FIRST_KINDS = ("Transformer", "Pooling")
LATER_KINDS = ("Dense", "LayerNorm", "Normalize")
OWN_TRANSFORMER = "custom_st.Transformer"
"""A class of Jina v3's repository, which hands a task on to the model. Others may call theirs the same."""
IGNORED_KINDS = ("Dropout",)
"""Without effect outside training."""

POOLINGS = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
"""The values of the key pooling_mode (version 6) and our names; see `models.pooling`."""
LEGACY_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The older keys, each true or false, in the order in which several are concatenated."""


class Features(NamedTuple):
    """sentence-transformers' names of what modules read and write."""

    pooled: str
    tokens: str


FEATURES = Features("sentence_embedding", "token_embeddings")


@dataclass(frozen=True, slots=True)
class ModuleChain:
    """What is done with the rows of the Transformer; plain mean pooling where nothing is said."""

    has_pooling: bool = True
    pooling: tuple[str, ...] = ("mean",)
    """Concatenated in this order."""
    pools_prompt: bool = True
    modules: tuple[tuple[str, str], ...] = ()
    """(kind, folder) of what comes between Pooling and the Normalize at the end."""
    normalize: bool = False
    """There is one at the end."""
    dense_dim: int = 0
    """out_features of the last Dense; 0 without one."""


def find_transformer(directory: Path) -> str:
    """The folder of the Transformer inside a model directory: empty for the directory itself.

    Raises ModelDirectoryError where modules.json cannot be read.
    """
    return find_module(directory, "Transformer") or ""


def check_is_whole(directory: Path) -> None:
    """Raises ModelDirectoryError for the Transformer's folder of a model that has more: that would be lost."""
    parent = directory.absolute().parent
    if not (directory / "modules.json").exists() and names_transformer(parent, directory.name):
        raise ModelDirectoryError(
            f"{directory}: this is only the Transformer of the model in {parent}, whose modules.json names what comes "
            "after it. Use that directory as the source, or set pooling to serve the Transformer by itself"
        )


def names_transformer(directory: Path, folder: str) -> bool:
    """Whether a directory is a model with its Transformer in that folder; another program's modules.json is none."""
    try:
        return (directory / "modules.json").exists() and find_transformer(directory) == folder
    except ModelDirectoryError:
        return False


def find_module(directory: Path, kind: str) -> str | None:
    """The folder of the first module whose class is called that; None where there is none, or no modules.json.

    Raises ModelDirectoryError where it cannot be read.
    """
    path = directory / "modules.json"
    pairs = list_modules(path) if path.exists() else []
    return next((folder for full, folder in pairs if full.endswith(f".{kind}")), None)


def list_modules(path: Path) -> list[tuple[str, str]]:
    """(class, folder) in the order of modules.json. Raises ModelDirectoryError for folders elsewhere."""
    try:
        pairs = [(str(module["type"]), str(module["path"])) for module in read_json(path)]
    except (KeyError, TypeError):
        raise ModelDirectoryError(f"{path}: must be a list of objects with the keys type and path") from None
    for _, folder in pairs:
        if Path(folder).name != folder or folder == "..":
            raise ModelDirectoryError(f"{path}: the folder {folder!r} is not directly inside the model directory")
    return pairs


def read_modules(directory: Path) -> ModuleChain:
    """The chain of an embedder; the default where there is no modules.json, or nothing in it but the Transformer.

    Raises ModelDirectoryError for what cannot be followed.
    """
    path = directory / "modules.json"
    pairs = name_kinds(path, list_modules(path)) if path.exists() else []
    if not pairs or [kind for kind, _ in pairs] == ["Transformer"]:
        return ModuleChain()
    check_order(path, [kind for kind, _ in pairs])
    folders = [directory / folder for kind, folder in pairs if kind == "Pooling"]
    pooling, pools_prompt = read_pooling(folders[0] / "config.json") if folders else (("mean",), True)
    later = [pair for pair in pairs if pair[0] in LATER_KINDS]
    dense_dim = 0
    for kind, folder in later:
        settings = directory / folder / "config.json"
        if kind == "Dense":
            dense_dim = require_number(settings, read_object(settings), "out_features")
        elif kind == "Normalize":
            check_features(settings, read_optional(settings))
    normalize = later[-1:] != [] and later[-1][0] == "Normalize"
    modules = tuple(later[:-1] if normalize else later)
    return ModuleChain(bool(folders), pooling, pools_prompt, modules, normalize, dense_dim)


def check_scorer(directory: Path) -> None:
    """Raises ModelDirectoryError for a cross-encoder with more than its Transformer."""
    path = directory / "modules.json"
    kinds = [kind for kind, _ in list_modules(path)] if path.exists() else []
    if more := [kind for kind in kinds if not kind.endswith(".Transformer")]:
        raise ModelDirectoryError(
            f"{path}: a cross-encoder with the modules {', '.join(more)} is not supported; only the Transformer is"
        )


def name_kinds(path: Path, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(kind, folder) without those that have no effect. Raises ModelDirectoryError for classes we have not."""
    named = []
    for full, folder in pairs:
        kind = full.rpartition(".")[2]
        is_theirs = full.startswith("sentence_transformers.") or is_jina(path.parent / folder, full)
        if not is_theirs or kind not in FIRST_KINDS + LATER_KINDS + IGNORED_KINDS:
            raise ModelDirectoryError(
                f"{path}: the module {full!r} is not supported; supported are sentence-transformers' "
                f"{', '.join(FIRST_KINDS + LATER_KINDS)}"
            )
        if kind not in IGNORED_KINDS:
            named.append((kind, folder))
    return named


def is_jina(folder: Path, full: str) -> bool:
    return full == OWN_TRANSFORMER and read_keys(folder)["model_type"] == FLASH


def check_order(path: Path, kinds: Sequence[str]) -> None:
    """Transformer, Pooling, then the others in any order, each as often as it likes."""
    first = FIRST_KINDS if "Pooling" in kinds else FIRST_KINDS[:1]
    rest = kinds[len(first) :]
    if tuple(kinds[: len(first)]) != first or any(kind in FIRST_KINDS for kind in rest):
        raise ModelDirectoryError(
            f"{path}: the modules {', '.join(kinds)} are not supported in this order; it must be one Transformer, one "
            f"Pooling, then {', '.join(LATER_KINDS)} in any order"
        )


def read_pooling(path: Path) -> tuple[tuple[str, ...], bool]:
    """Our names of the modes, concatenated in this order, and `include_prompt`. Raises ModelDirectoryError.

    pooling_mode wins over the older keys; where no mode is chosen it is the mean.
    """
    keys = read_object(path)
    modes = keys.get("pooling_mode", list_legacy_modes(keys))
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or any(mode not in POOLINGS for mode in modes):
        raise ModelDirectoryError(
            f"{path}: pooling {modes!r} is not supported; supported are {', '.join(POOLINGS)}, alone or in a list"
        )
    return tuple(POOLINGS[mode] for mode in modes), bool(keys.get("include_prompt", True))


def list_legacy_modes(keys: Keys) -> list[str]:
    """Keys that are unknown stand for themselves, so that they are refused."""
    chosen = [key for key, value in keys.items() if key.startswith("pooling_mode_") and value]
    known = [mode for key, mode in LEGACY_POOLINGS.items() if key in chosen]
    return [*known, *(key for key in chosen if key not in LEGACY_POOLINGS)] or ["mean"]


def check_features(path: Path, keys: Keys, feature: str = FEATURES.pooled) -> None:
    """Raises ModelDirectoryError for a module that reads or writes anything but that."""
    for name in ("module_input_name", "module_output_name"):
        if keys.get(name) not in (None, feature):
            raise ModelDirectoryError(f"{path}: {name} {keys[name]!r} is not supported; only {feature!r} is")
