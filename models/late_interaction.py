"""Late interaction (ColBERT, Khattab & Zaharia, 2020): a vector of each token, and how queries and documents are read.

Three kinds of directories say it: those of Stanford's code (artifact.metadata), PyLate's, and sentence-transformers'
MultiVectorEncoder. Knows no torch.
"""

import string
from dataclasses import dataclass
from pathlib import Path

from models.defaults import OFFSET_POSITIONS, Keys
from models.keys import ModelDirectoryError, read_architecture, read_object, read_optional, require_number
from models.module_chain import FEATURES, check_features, find_transformer, list_modules
from models.settings import FILE_NAME
from models.tokenization import read_own_settings

ARCHITECTURE = "HF_ColBERT"
METADATA = "artifact.metadata"
MODEL_TYPES = ("ColBERT", "MultiVectorEncoder")
"""Of config_sentence_transformers.json: PyLate's, and sentence-transformers' own."""
PREFIXES = {"query": "query_prefix", "document": "document_prefix"}
"""PyLate's keys by side; its first versions have them and no model type."""
PYLATE_KEYS = (*PREFIXES.values(), "do_query_expansion", "attend_to_expansion_tokens", "skiplist_words")
LENGTHS = {"query": "query_length", "document": "document_length"}
MASK = "MultiVectorMask"
PYLATE_DENSE = "pylate.models.Dense.Dense"
EXPANSION_KEYS = {"strategy", "attend", "token", "length"}
DEFAULT_QUERY_LENGTH = 32
DEFAULT_DIM = 128
SIDES = ("query", "document")
LINEAR = "Linear"
"""A kind of module that no modules.json has: a linear layer in a file of the directory."""


@dataclass(frozen=True, slots=True)
class Expansion:
    """Shorter queries are filled up to `length` with `token`, of which each gives a vector of its own.

    `is_attended`: the tokens of the query see these; they see the query's in any case.
    """

    length: int
    token: str
    is_attended: bool = False


@dataclass(frozen=True, slots=True)
class LateInteraction:
    """How queries and documents become tokens, and what their vectors are compared by."""

    max_query_tokens: int
    """What is behind them is cut off, as in training."""
    max_document_tokens: int
    expansion: Expansion | None = None
    skipping_sides: tuple[str, ...] = ("document",)
    """Where `ModelInfo.skipped_tokens` give no vectors."""
    markers: tuple[str, ...] = ()
    """Prefixes that stand for one token each where the vocabulary has it, whatever else the tokenizer makes of them."""
    is_mean: bool = False
    """A score is the mean over the query's vectors, not their sum."""

    @property
    def has_unseen_tokens(self) -> bool:
        """Some tokens are not attended to."""
        return self.expansion is not None and not self.expansion.is_attended


@dataclass(frozen=True, slots=True)
class Reading:
    """All that a directory says of it."""

    settings: LateInteraction
    output_dim: int
    modules: tuple[tuple[str, str], ...]
    """As `ModelInfo.modules`."""
    normalize: bool
    prompts: dict[str, str]
    skipped_tokens: tuple[str, ...]


def is_late_interaction(directory: Path, keys: Keys) -> bool:
    """`keys`: of config.json. Raises ModelDirectoryError where a file cannot be read."""
    if not (directory / "modules.json").exists():
        return read_architecture(keys) == ARCHITECTURE
    given = read_optional(directory / FILE_NAME)
    return given.get("model_type") in MODEL_TYPES or any(key in given for key in PREFIXES.values())


def read_late_interaction(directory: Path, keys: Keys, max_input_tokens: int, num_positions: int) -> Reading:
    """`max_input_tokens`: the tokenizer's limit, for sides that have none of their own; `num_positions`: the model's.

    Raises ModelDirectoryError for what cannot be followed.
    """
    if not is_late_interaction(directory, keys):
        raise ModelDirectoryError(
            f"{directory}: task multi_vector needs a ColBERT of Stanford's, PyLate's or sentence-transformers' "
            "MultiVectorEncoder. Leave task out"
        )
    limits = (max_input_tokens, num_positions)
    if (directory / "modules.json").exists():
        return read_chain(directory, keys, limits)
    return read_metadata(directory, keys, limits)


def read_metadata(directory: Path, keys: Keys, limits: tuple[int, int]) -> Reading:
    """Stanford's; what it leaves unsaid is as sentence-transformers has it."""
    path = directory / METADATA
    given = {key: value for key, value in read_optional(path).items() if value is not None}
    if given.get("similarity", "cosine") != "cosine":
        raise ModelDirectoryError(f"{path}: similarity {given['similarity']!r} is not supported; only 'cosine' is")
    prompts = {
        "query": f"{given.get('query_token_id') or '[unused0]'} ",
        "document": f"{given.get('doc_token_id') or '[unused1]'} ",
    }
    length = require_number(path, {"query_maxlen": DEFAULT_QUERY_LENGTH} | given, "query_maxlen")
    lengths = {"query": None, "document": read_length(path, given, "doc_maxlen")}
    expansion = Expansion(length, name_mask(directory, keys), bool(given.get("attend_to_mask_tokens")))
    return Reading(
        settle(path, lengths, limits, expansion, is_fixed=True, markers=tuple(prompts.values())),
        output_dim=require_number(path, {"dim": DEFAULT_DIM} | given, "dim"),
        modules=((LINEAR, ""),),
        normalize=True,
        prompts=prompts,
        skipped_tokens=tuple(string.punctuation) if given.get("mask_punctuation", True) else (),
    )


def read_chain(directory: Path, keys: Keys, limits: tuple[int, int]) -> Reading:
    """With a modules.json. PyLate's name neither mask nor Normalize, which its code has."""
    path = directory / FILE_NAME
    given = read_optional(path)
    folder = directory / find_transformer(directory)
    is_pylate = given.get("model_type") != "MultiVectorEncoder"
    modules, mask = read_modules(directory, is_pylate=is_pylate)
    own_path, own = read_own_settings(folder)
    merged = read_pylate(given) | {key: own[key] for key in (*LENGTHS.values(), "query_expansion") if key in own}
    expansion, is_fixed = read_expansion(own_path, merged.get("query_expansion"), name_mask(folder, keys))
    if expansion is not None and mask is None and not is_pylate:
        raise ModelDirectoryError(f"{directory / 'modules.json'}: query_expansion needs a module {MASK}")
    words, sides = read_mask(directory, mask) if mask is not None else read_skiplist(path, given, is_pylate=is_pylate)
    lengths = {side: read_length(own_path, merged, name) for side, name in LENGTHS.items()}
    prefixes = {side: str(given[key] or "") for side, key in PREFIXES.items() if key in given}
    dense = [folder for kind, folder in modules if kind == "Dense"]
    sizes = directory / dense[-1] / "config.json" if dense else folder / "config.json"
    normalize = bool(modules) and modules[-1][0] == "Normalize"
    return Reading(
        settle(
            *(own_path, lengths, limits, expansion),
            is_fixed=is_fixed,
            markers=tuple(prefixes.values()),
            sides=sides,
            is_mean=given.get("similarity_fn_name") == "meanmaxsim",
        ),
        output_dim=require_number(
            sizes, read_object(sizes) if dense else keys, "out_features" if dense else "hidden_size"
        ),
        modules=modules[:-1] if normalize else modules,
        normalize=normalize,
        prompts=read_prompts(given, prefixes),
        skipped_tokens=words,
    )


def read_modules(directory: Path, *, is_pylate: bool) -> tuple[tuple[tuple[str, str], ...], str | None]:
    """What is done with the rows, (kind, folder) in order, and the folder of the mask. Raises ModelDirectoryError."""
    path = directory / "modules.json"
    known = ("Transformer", "Dense", "Normalize", *(("Pooling",) if is_pylate else (MASK,)))
    modules, mask = [], None
    for index, (full, folder) in enumerate(list_modules(path)):
        kind = full.rpartition(".")[2]
        is_known = full == PYLATE_DENSE or (full.startswith("sentence_transformers.") and kind in known)
        if not is_known or (kind == "Transformer") != (index == 0):
            raise ModelDirectoryError(
                f"{path}: the module {full!r} is not supported here; there may be a Transformer, then "
                f"{', '.join(known[1:])}"
            )
        if kind == "Normalize" and not is_pylate:
            settings = directory / folder / "config.json"
            found = read_optional(settings)
            named = {"module_input_name": found.get("module_input_name") or FEATURES.pooled}
            check_features(settings, found | named, FEATURES.tokens)
        if kind == MASK:
            mask = folder
        elif kind == "Dense" or (kind == "Normalize" and not is_pylate):
            modules.append((kind, folder))
    return (*modules, *((("Normalize", ""),) if is_pylate else ())), mask


def read_pylate(given: Keys) -> Keys:
    """Its keys in sentence-transformers' words: where it has any of them, queries are expanded unless it says no."""
    found = {name: given[name] for name in LENGTHS.values() if given.get(name) is not None}
    if "query_expansion" in given:
        return found | {"query_expansion": given["query_expansion"]}
    if not any(key in given for key in (*PYLATE_KEYS, *LENGTHS.values())) or given.get("do_query_expansion") is False:
        return found
    length = found.pop("query_length", DEFAULT_QUERY_LENGTH)
    attend = bool(given.get("attend_to_expansion_tokens", given.get("attend_to_mask_tokens")))
    return found | {"query_expansion": {"strategy": "fixed", "attend": attend, "length": length}}


def read_expansion(path: Path, given: object, mask: str) -> tuple[Expansion | None, bool]:
    """And whether longer queries are cut to the same length. Raises ModelDirectoryError."""
    if given is None:
        return None, False
    if not isinstance(given, dict) or not given.keys() <= EXPANSION_KEYS:
        raise ModelDirectoryError(
            f"{path}: query_expansion must be an object with {', '.join(sorted(EXPANSION_KEYS))}, but is {given!r}"
        )
    strategy = given.get("strategy")
    if strategy not in ("fixed", "min"):
        raise ModelDirectoryError(f"{path}: query_expansion strategy {strategy!r} is not supported; fixed and min are")
    length = require_number(path, given, "length")
    return Expansion(length, str(given.get("token") or mask), bool(given.get("attend"))), strategy == "fixed"


def read_mask(directory: Path, folder: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tokens without vectors, and on which sides. Raises ModelDirectoryError."""
    path = directory / folder / "config.json"
    given = read_optional(path)
    if given.get("keep_only_token_ids"):
        raise ModelDirectoryError(f"{path}: keep_only_token_ids is not supported; leave it out")
    sides = given.get("skiplist_tasks")
    sides = ["document"] if sides is None else [sides] if isinstance(sides, str) else sides
    return read_words(path, given), tuple(side for side in SIDES if side in sides)


def read_skiplist(path: Path, given: Keys, *, is_pylate: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Without a mask: of PyLate's directories, punctuation where nothing is said."""
    if given.get("skiplist_words") is None:
        return (tuple(string.punctuation) if is_pylate else ()), ("document",)
    return read_words(path, given), ("document",)


def read_words(path: Path, given: Keys) -> tuple[str, ...]:
    words = given.get("skiplist_words") or []
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ModelDirectoryError(f"{path}: skiplist_words must be a list of texts, but is {words!r}")
    return tuple(words)


def read_prompts(given: Keys, prefixes: dict[str, str]) -> dict[str, str]:
    """With the prefixes before those of their side."""
    prompts = {str(name): str(text or "") for name, text in (given.get("prompts") or {}).items()}
    for side, prefix in prefixes.items():
        prompts[side] = prefix + prompts.get(side, "").removeprefix(prefix)
    return prompts


def read_length(path: Path, given: Keys, name: str) -> int | None:
    return None if given.get(name) is None else require_number(path, given, name)


def settle(
    path: Path,
    lengths: dict[str, int | None],
    limits: tuple[int, int],
    expansion: Expansion | None,
    *,
    is_fixed: bool,
    markers: tuple[str, ...] = (),
    sides: tuple[str, ...] = ("document",),
    is_mean: bool = False,
) -> LateInteraction:
    """No side is longer than the model has positions. Raises ModelDirectoryError where an expansion would be."""
    max_input_tokens, num_positions = limits
    query, document = (min(lengths[side] or max_input_tokens, num_positions) for side in SIDES)
    if expansion is not None:
        if expansion.length > num_positions:
            raise ModelDirectoryError(
                f"{path}: queries are expanded to {expansion.length} tokens; the model has {num_positions} positions"
            )
        query = expansion.length if is_fixed else max(query, expansion.length)
    return LateInteraction(query, document, expansion, sides, tuple(filter(None, markers)), is_mean)


def name_mask(folder: Path, keys: Keys) -> str:
    """The tokenizer's mask token; what transformers gives it in such models where no file names it."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = read_optional(folder / name).get("mask_token")
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            return content
    return "<mask>" if keys["model_type"] in OFFSET_POSITIONS else "[MASK]"
