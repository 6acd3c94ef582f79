"""Language models that judge pairs of texts by how likely the answer "yes" is against "no", and say nothing.

sentence-transformers 6 has such a directory as a CrossEncoder whose second module is LogitScore.
"""

from pathlib import Path

from models.keys import ModelDirectoryError, read_object, require_number
from models.module_chain import find_module
from models.special_tokens import list_added_tokens
from models.tokenizer_files import has_tokenizer, read_tokenizer

LOGIT_SCORE = "LogitScore"
REQUIRED_ANSWER, OPTIONAL_ANSWER = "true_token_id", "false_token_id"
YES, NO = "yes", "no"
"""The answers of Qwen3-Reranker, whose directory does not name them."""


def find_logit_score(directory: Path) -> Path | None:
    """The module's folder, if the directory has one. Raises ModelDirectoryError."""
    folder = find_module(directory, LOGIT_SCORE)
    return None if folder is None else directory / folder


def read_answers(directory: Path, transformer: Path) -> tuple[int, ...]:
    """The ids of the tokens for yes and no; of yes alone where its logit is the score. Raises ModelDirectoryError."""
    folder = find_logit_score(directory)
    if folder is None:
        return tuple(find_token(transformer, word) for word in (YES, NO))
    path = folder / "config.json"
    keys = read_object(path)
    if keys.get("module_input_name", "causal_logits") != "causal_logits":
        raise ModelDirectoryError(f"{path}: module_input_name {keys['module_input_name']!r} is not supported")
    names = (REQUIRED_ANSWER, *((OPTIONAL_ANSWER,) if keys.get(OPTIONAL_ANSWER) is not None else ()))
    return tuple(require_number(path, keys, name, least=0) for name in names)


def find_token(directory: Path, word: str) -> int:
    """Raises ModelDirectoryError where the vocabulary has no such token."""
    keys = read_tokenizer(directory) if has_tokenizer(directory) else {}
    vocabulary = (keys.get("model") or {}).get("vocab")
    found = list_added_tokens(directory).get(word, vocabulary.get(word) if isinstance(vocabulary, dict) else None)
    if not isinstance(found, int):
        raise ModelDirectoryError(
            f"{directory}: there is no token {word!r}, which the answers of a model that judges pairs are read by. "
            "Leave task out"
        )
    return found
