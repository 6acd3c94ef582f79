"""Which token has which role, as a directory's tokenizer files have it. Knows no torch."""

from pathlib import Path

from models.keys import ModelDirectoryError, read_optional
from models.tokenizer_files import has_tokenizer, read_tokenizer

USUAL_MASKS = ("[MASK]", "<mask>")
"""What transformers' classes call it where a directory's own settings do not say."""


def find_special_token(directory: Path, role: str) -> int | None:
    """The id of tokenizer_config.json's `eos_token`, `mask_token` and so on among the added tokens."""
    content = read_content(directory, role)
    return None if content is None else list_added_tokens(directory).get(content)


def find_mask_token(directory: Path) -> tuple[str, int]:
    """How it is written, and its id. Raises ModelDirectoryError where there is none."""
    added = list_added_tokens(directory)
    for content in (read_content(directory, "mask_token"), *USUAL_MASKS):
        if content in added:
            return content, added[content]
    raise ModelDirectoryError(
        f"{directory / 'tokenizer_config.json'}: task fill_mask needs a mask_token among the tokenizer's added "
        "tokens, and there is none. Take the tokenizer that the model was trained with"
    )


def read_content(directory: Path, role: str) -> str | None:
    """What tokenizer_config.json calls the token of a role; None where it does not say."""
    token = read_optional(directory / "tokenizer_config.json").get(role)
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def list_added_tokens(directory: Path) -> dict[str, int]:
    """Their ids by what they are called, from tokenizer_config.json or the tokenizer; the first of equal ones."""
    given = read_optional(directory / "tokenizer_config.json").get("added_tokens_decoder")
    if isinstance(given, dict):
        pairs = [(int(key), item) for key, item in given.items() if key.isdecimal()]
    else:
        listed = read_tokenizer(directory).get("added_tokens") if has_tokenizer(directory) else None
        pairs = [(item.get("id"), item) for item in listed or []]
    return {item.get("content"): token_id for token_id, item in reversed(pairs)}
