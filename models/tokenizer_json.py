"""What any tokenizer.json has: added tokens with their ids, and the special tokens around texts. Knows no torch.

The format is that of tokenizers (https://github.com/huggingface/tokenizers), which has no other description than what
it writes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from models.defaults import Keys
from models.keys import ModelDirectoryError, read_optional

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
FURTHER_KEYS = ("additional_special_tokens", "extra_special_tokens")
"""The key of further special tokens, in transformers' versions up to 4 and from 5 on."""


class Token(NamedTuple):
    """`eats_left`, `eats_right`: blanks beside it belong to it. `is_normalized`: it is looked for after normalising."""

    content: str
    eats_left: bool = False
    eats_right: bool = False
    is_whole_word: bool = False
    is_normalized: bool = False
    is_special: bool = True


class Template(NamedTuple):
    """What a text becomes, and two: roles and `src_lang` by their names, the texts as $A and $B, each with its token
    type where that is not 0 (`$B:1`)."""

    single: str
    pair: str


class Settings(NamedTuple):
    """A directory's tokenizer_config.json over its special_tokens_map.json, and added_tokens.json.

    `placed`: tokens with ids of their own.
    """

    path: Path
    keys: Keys
    placed: dict[int, Token]


def read_settings(directory: Path) -> Settings:
    """Raises ModelDirectoryError."""
    path = directory / "tokenizer_config.json"
    keys = read_optional(directory / "special_tokens_map.json") | read_optional(path)
    special = {parse_token(path, value).content for role in ROLES if (value := keys.get(f"{role}_token")) is not None}
    special |= {token.content for token in list_further(path, keys)}
    placed = {}
    for content, token_id in read_optional(directory / "added_tokens.json").items():
        placed[token_id] = Token(content, is_normalized=content not in special, is_special=content in special)
    for key, value in (keys.get("added_tokens_decoder") or {}).items():
        placed[int(key)] = parse_token(path, value)
    return Settings(path, keys, placed)


def check_unset(settings: Settings, *names: str) -> None:
    """Raises ModelDirectoryError for a setting that is not followed."""
    for name in names:
        if settings.keys.get(name):
            raise ModelDirectoryError(
                f"{settings.path}: {name} is not supported without a tokenizer.json. With transformers: "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...) writes it"
            )


def parse_token(path: Path, value: object) -> Token:
    """A text, or an object with `content`. Raises ModelDirectoryError."""
    if isinstance(value, str):
        return Token(value)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ModelDirectoryError(f"{path}: {value!r} is no token; it must be a text, or an object with content")
    return Token(
        value["content"],
        bool(value.get("lstrip", False)),
        bool(value.get("rstrip", False)),
        bool(value.get("single_word", False)),
        bool(value.get("normalized", False)),
        bool(value.get("special", True)),
    )


def list_further(path: Path, keys: Keys) -> list[Token]:
    """Special tokens without a role."""
    given: Any = next((keys[name] for name in FURTHER_KEYS if keys.get(name)), [])
    return [parse_token(path, value) for value in (given.values() if isinstance(given, dict) else given)]


def read_roles(settings: Settings, defaults: Mapping[str, Token]) -> dict[str, Token]:
    """By role; those that are null are left out. Raises ModelDirectoryError."""
    found = dict(defaults)
    for role in ROLES:
        name = f"{role}_token"
        if settings.keys.get(name) is not None:
            found[role] = parse_token(settings.path, settings.keys[name])
        elif name in settings.keys:
            found.pop(role, None)
    return found


def place_tokens(settings: Settings, vocabulary: dict[str, int], tokens: Sequence[Token]) -> dict[int, Token]:
    """By id: those that the directory gives one, those of the vocabulary, and the others behind it in their order."""
    placed = dict(settings.placed)
    ids = vocabulary | {token.content: token_id for token_id, token in placed.items()}
    following = max(ids.values(), default=-1) + 1
    for token in tokens:
        if token.content not in ids:
            ids[token.content] = following
            following += 1
        placed.setdefault(ids[token.content], token)
    return placed


def write_tokens(placed: Mapping[int, Token]) -> list[Keys]:
    return [
        {
            "id": token_id,
            "content": token.content,
            "single_word": token.is_whole_word,
            "lstrip": token.eats_left,
            "rstrip": token.eats_right,
            "normalized": token.is_normalized,
            "special": token.is_special,
        }
        for token_id, token in sorted(placed.items())
    ]


def write_template(settings: Settings, template: Template, names: Mapping[str, str], ids: Mapping[str, int]) -> Keys:
    """`names`: tokens as the template calls them. Raises ModelDirectoryError."""
    special: dict[str, Keys] = {}

    def write(part: str) -> Keys:
        name, _, type_id = part.partition(":")
        if name.startswith("$"):
            return {"Sequence": {"id": name[1:], "type_id": int(type_id or 0)}}
        token = names.get(name)
        if token is None or token not in ids:
            raise ModelDirectoryError(
                f"{settings.path}: texts need a token for {name}, and {token!r} is none of the vocabulary's. Take the "
                "tokenizer that the model was trained with"
            )
        special[token] = {"id": token, "ids": [ids[token]], "tokens": [token]}
        return {"SpecialToken": {"id": token, "type_id": int(type_id or 0)}}

    parts = {name: [write(part) for part in text.split()] for name, text in template._asdict().items()}
    return {"type": "TemplateProcessing", **parts, "special_tokens": special}
