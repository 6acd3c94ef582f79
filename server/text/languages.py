"""How a translator is told languages: by tokens before or behind a text, by the first token of its answer, or in words.

Knows no HTTP. Errors name the fields `source_language` and `target_language`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from models.info import ModelInfo
from models.translation import TranslationInfo
from server.errors import InvalidField
from server.text.tokenizer import Tokenizer
from server.wire.job import TokenArray

M2M100, MARIAN = ("__", "__"), (">>", "<<")
"""Around the code of a language in the token that stands for it; others have none."""
SHOWN = 30
"""Codes in an error."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """What is put around each text, and where its answer begins. None: as the tokenizer or the model has it."""

    prefix: str = ""
    around: tuple[TokenArray, TokenArray] | None = None
    """Tokens before and behind each text, in place of those that the tokenizer puts there."""
    opening: int | None = None
    """What the answer goes on from."""
    forced_begin: int | None = None
    """Its first token."""


@dataclass(frozen=True, slots=True)
class Languages:
    """Of one translator. `codes`: its languages, as it writes them, and their tokens; empty where it has none for
    them."""

    info: TranslationInfo
    codes: Mapping[str, int] = field(default_factory=dict)
    end_token_id: int = 0

    def instruct(self, source: str | None, target: str | None) -> Instruction:
        """None: as the directory says. Raises InvalidField where a language is missing or not known."""
        if self.info.style == "words":
            return Instruction(prefix=self.find_words(source, target))
        if not self.codes:
            self.check_only(source, self.info.source_language, "source_language")
            self.check_only(target, self.info.target_language, "target_language")
            return Instruction()
        written = self.find_code(target, self.info.target_language, "target_language")
        if self.info.style == "target_prefix":
            self.check_only(source, self.info.source_language, "source_language")
            return Instruction(around=(as_tokens(written), as_tokens(self.end_token_id)))
        read = self.find_code(source, self.info.source_language, "source_language")
        if self.info.style == "suffix":
            return Instruction(around=(as_tokens(), as_tokens(self.end_token_id, read)), opening=written)
        return Instruction(around=(as_tokens(read), as_tokens(self.end_token_id)), forced_begin=written)

    def find_code(self, given: str | None, usual: str, name: str) -> int:
        """Written as the model does, or as the beginning of one code only: `en` for `en_XX`, `deu` for `deu_Latn`."""
        wanted = given or usual
        if not wanted:
            raise InvalidField(f"{name} is missing; this model knows {list_codes(self.codes)}", param=name)
        folded = wanted.casefold().replace("-", "_")
        found = [code for code in self.codes if code.casefold() == folded]
        found = found or [code for code in self.codes if code.casefold().startswith(f"{folded}_")]
        if len(found) != 1:
            problem = "could be several languages" if found else "is not known"
            known = list_codes(found or self.codes)
            raise InvalidField(f"{name} {wanted[:50]!r} {problem}; this model knows {known}", param=name)
        return self.codes[found[0]]

    def find_words(self, source: str | None, target: str | None) -> str:
        pairs = self.info.pair_prefixes
        fitting = [pair for pair in pairs if source in (None, pair[0]) and target in (None, pair[1])]
        if len(fitting) == 1:
            return pairs[fitting[0]]
        known = list_codes(f"{one} to {other}" for one, other in pairs) or "no languages"
        name = "target_language" if target is None or source is not None else "source_language"
        problem = "leave several translations open" if fitting else "are not a pair that this model translates"
        raise InvalidField(f"source_language and target_language {problem}; it was trained for {known}", param=name)

    @staticmethod
    def check_only(given: str | None, own: str, name: str) -> None:
        """Of a model that knows one language here. Raises InvalidField."""
        if given and own and given.casefold() != own.casefold():
            raise InvalidField(
                f"{name} is {given[:50]!r}, and this model's is {own}. Leave it out, or choose another model",
                param=name,
            )


def as_tokens(*token_ids: int) -> TokenArray:
    return np.array(token_ids, np.int32)


def list_codes(codes: Iterable[str]) -> str:
    listed = sorted(codes)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")


def find_languages(info: ModelInfo, translation: TranslationInfo, tokenizer: Tokenizer) -> Languages:
    """Marian has the tokens of languages in its vocabulary, others among those that were added to it."""
    end = info.eos_token_ids[0] if info.eos_token_ids else 0
    if translation.style == "target_prefix":
        return Languages(translation, read_marked(tokenizer.list_tokens(), *MARIAN), end)
    if translation.style in ("prefix", "suffix"):
        added = tokenizer.list_tokens(only_added=True)
        return Languages(translation, read_marked(added, *M2M100) or read_codes(added), end)
    return Languages(translation, {}, end)


def read_marked(tokens: Mapping[str, int], left: str, right: str) -> dict[str, int]:
    """What stands between two marks."""
    return {
        token[len(left) : -len(right)]: token_id
        for token, token_id in tokens.items()
        if token.startswith(left) and token.endswith(right) and len(token) > len(left + right)
    }


def read_codes(tokens: Mapping[str, int]) -> dict[str, int]:
    """What is written like en_XX and deu_Latn."""
    return {token: token_id for token, token_id in tokens.items() if is_code(token)}


def is_code(token: str) -> bool:
    language, between, region = token.partition("_")
    return bool(between) and language.isalpha() and language.islower() and region.isalpha()
