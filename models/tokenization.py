"""What a model directory says of making tokens of texts: how many, of which case, of which types. Knows no torch."""

from dataclasses import dataclass
from pathlib import Path

from models.defaults import OFFSET_POSITIONS, Keys
from models.keys import ModelDirectoryError, read_optional, require_number

OWN_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""sentence-transformers' names of its settings of the Transformer: it takes the first that says anything."""
OPENING: Keys = {"chat_template": {"add_generation_prompt": True}}
"""Chat templates are to end where an answer begins."""
OWN_KEYS: Keys = {
    "module_output_name": ("token_embeddings", "scores", "causal_logits"),
    "processing_kwargs": ({}, OPENING),
    "tokenizer_name_or_path": (),
    "config_args": ({},),
    "config_kwargs": ({},),
}
"""Keys of theirs that change answers, and the values that are followed; null is as good as none at all."""
TOKENIZER_ARGUMENTS = ("tokenizer_args", "processor_kwargs")
"""The keys of what sentence-transformers hands to the tokenizer, in its older and newer words."""

TYPELESS = ("Camembert", "DistilBert", "MPNet", "Roberta", "XLMRoberta")
TYPELESS_TOKENIZERS = {"TokenizersBackend"} | {
    f"{family}Tokenizer{ending}" for family in TYPELESS for ending in ("", "Fast")
}
"""transformers' classes whose model_input_names are without token_type_ids, in its versions 4 and 5."""


@dataclass(frozen=True, slots=True)
class Tokenization:
    max_input_tokens: int
    """Special tokens included."""
    do_lower_case: bool
    """Before the tokenizer, whatever it does itself."""
    has_token_types: bool
    """False: all types are 0, in pairs too."""
    opens_answer: bool
    """Chat templates are to end where an answer begins."""
    message_format: str
    """`flat` or `structured`: texts become messages of the chat template, whose contents are texts or lists of parts.
    Empty: texts are read as they are."""


def read_tokenization(folder: Path, keys: Keys) -> Tokenization:
    """`folder` holds the Transformer, and `keys` are those of its config.json. Raises ModelDirectoryError."""
    own_path, own = read_own_settings(folder)
    tokenizer_path = folder / "tokenizer_config.json"
    tokenizer = read_optional(tokenizer_path)
    positions = count_positions(folder / "config.json", keys)
    limit = read_own_limit(own_path, own)
    if limit is None:
        limit = read_limit(tokenizer_path, tokenizer)
    return Tokenization(
        max_input_tokens=positions if limit is None else min(limit, positions),
        do_lower_case=bool(own.get("do_lower_case")),
        has_token_types=has_token_types(tokenizer_path, tokenizer),
        opens_answer=own.get("processing_kwargs") == OPENING,
        message_format=read_message_format(own_path, own),
    )


def count_positions(path: Path, keys: Keys) -> int:
    """As many tokens as the model has positions for."""
    positions = require_number(path, keys, "max_position_embeddings")
    if keys["model_type"] in OFFSET_POSITIONS:
        positions -= require_number(path, keys, "pad_token_id", least=0) + 1
    if keys["model_type"] == "nomic_bert" and "rotary_scaling_factor" in keys:
        # Beyond that positions would be stretched, by the longest text of a batch.
        positions = min(positions, require_number(path, keys, "max_trained_positions"))
    return positions


def read_own_settings(folder: Path) -> tuple[Path, Keys]:
    """sentence-transformers' file and its keys. Raises ModelDirectoryError for settings that are not followed."""
    for path in (folder / name for name in OWN_FILES):
        if own := read_optional(path):
            check_own_settings(path, own)
            return path, own
    return folder / OWN_FILES[0], {}


def check_own_settings(path: Path, own: Keys) -> None:
    for name, values in OWN_KEYS.items():
        if own.get(name) not in (None, *values):
            raise ModelDirectoryError(f"{path}: {name} {own[name]!r} is not supported; leave it out")


def read_message_format(path: Path, own: Keys) -> str:
    """sentence-transformers 6 renders the chat template wherever its own file has `message`, beside `text` or not."""
    config = own.get("modality_config") or {}
    if not isinstance(config, dict):
        raise ModelDirectoryError(f"{path}: modality_config is {config!r}; it must be an object")
    if "message" not in config:
        return ""
    message = config["message"]
    return "structured" if isinstance(message, dict) and message.get("format") == "structured" else "flat"


def read_own_limit(path: Path, own: Keys) -> int | None:
    """What sentence-transformers sets model_max_length to, whatever the tokenizer has; None where it does not."""
    for name in TOKENIZER_ARGUMENTS:
        arguments = own.get(name) or {}
        if not isinstance(arguments, dict):
            raise ModelDirectoryError(f"{path}: {name} is {arguments!r}; it must be an object")
        if (limit := read_limit(path, arguments)) is not None:
            return limit
    return None if own.get("max_seq_length") is None else require_number(path, own, "max_seq_length")


def read_limit(path: Path, keys: Keys) -> int | None:
    """model_max_length, which older files call max_len; None where neither is there.

    Where a tokenizer has no limit transformers writes 1e30, which is over any number of positions; max_length is of
    one call long ago, and does not count.
    """
    name = next((name for name in ("model_max_length", "max_len") if keys.get(name) is not None), None)
    if name is None:
        return None
    value = keys[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 1:
        raise ModelDirectoryError(f"{path}: {name} is {value!r}; it must be a number of at least 1")
    return int(min(value, 1e30))


def has_token_types(path: Path, tokenizer: Keys) -> bool:
    """As transformers has it: model_input_names decide, else the tokenizer's class."""
    names = tokenizer.get("model_input_names")
    if names is None:
        return tokenizer.get("tokenizer_class") not in TYPELESS_TOKENIZERS
    if not isinstance(names, list):
        raise ModelDirectoryError(f"{path}: model_input_names is {names!r}; it must be a list of names")
    return "token_type_ids" in names
