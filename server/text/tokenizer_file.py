"""A model directory's tokenizer.json, or what older files make of it, to its Tokenizer."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from models.keys import ModelDirectoryError
from models.tokenizer_files import FILE_NAME, has_tokenizer, read_tokenizer_text
from server.text.tokenizer import Tokenizer

logger = logging.getLogger("padless.http")


def load_tokenizer(
    directory: Path, *, lowercase: bool = False, is_required: bool = True, markers: Sequence[str] = (), **options: Any
) -> Tokenizer:
    """Read the directory, to see lower case only if `lowercase`, and `markers` as `add_markers` has it; `options` are
    the Tokenizer's own.

    Raises ModelDirectoryError, also where there is none and it `is_required`.
    """
    path = directory / FILE_NAME
    if not is_required and not has_tokenizer(directory):
        logger.warning("%s: no such file; this model takes token ids and answers with them", path)
        return Tokenizer(None, **options)
    text = "" if path.is_file() else read_tokenizer_text(directory)
    try:
        plain = tokenizers.Tokenizer.from_str(text) if text else tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        where = directory if text else path
        raise ModelDirectoryError(f"{where}: not a tokenizer this library can read: {error}") from error
    if lowercase:
        first = tokenizers.normalizers.Lowercase()
        rest = [plain.normalizer] if plain.normalizer is not None else []
        plain.normalizer = tokenizers.normalizers.Sequence([first, *rest])
    add_markers(plain, markers)
    return Tokenizer(plain, **options)


def add_markers(plain: tokenizers.Tokenizer, markers: Sequence[str]) -> None:
    """Let each prefix, or its first word, be one token wherever it is in a text, if the vocabulary has such a token.

    ColBERTs were trained with the token itself; as text most tokenizers would take it to pieces, or to lower case.
    """
    plain.no_padding()
    for marker in markers:
        words = [each for each in (marker, *marker.split(None, 1)[:1]) if plain.token_to_id(each) is not None]
        if words and plain.encode(words[0], add_special_tokens=False).tokens != words[:1]:
            plain.add_special_tokens([tokenizers.AddedToken(words[0], normalized=False, special=True)])
