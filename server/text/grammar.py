"""Answers that must conform to JSON, a JSON schema or a regular expression, by llguidance (docs/decisions/0012)."""

import json
import logging
from copy import copy
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from models.tokenizer_files import read_tokenizer_text
from server.errors import Unservable

logger = logging.getLogger("padless.engine")

LIMITS = LLParserLimits(initial_lexer_fuel=250_000, verbose_errors=False)
"""Of the work that one grammar may cause: some 0.1 s at a time, in which nobody else's tokens go on."""

MAX_COMPILED = 64
"""Grammars that are kept: many requests of one application ask for the same."""


class GrammarMatcher:
    """A Matcher of the engine's. Mutable: how far it has got, and which tokens may come next.

    Raises Unservable, when it is made and from `accept`, where the grammar leaves nothing to say or costs too much.
    """

    def __init__(self, inner: LLMatcher, kind: str) -> None:
        self.inner = inner
        self.kind = kind
        self.mask = self.find_mask()

    def find_mask(self) -> npt.NDArray[np.uint32]:
        mask = np.frombuffer(self.inner.compute_bitmask(), np.uint32)
        self.check()
        return mask

    def check(self) -> None:
        if self.inner.is_error():
            is_empty = "NoExtension" in self.inner.get_error()
            reason = "nothing conforms to it" if is_empty else "it is too complex to follow; simplify it"
            raise Unservable(f"{self.kind.replace('_', ' ')}: {reason}", "grammar")

    def compute_mask(self) -> npt.NDArray[np.uint32]:
        return self.mask

    def accept(self, token_id: int) -> None:
        """Raises ValueError for a token that the mask did not allow."""
        if not self.inner.consume_token(token_id):
            self.check()
            raise ValueError(f"token {token_id} does not follow the grammar. This is a bug.")
        self.mask = self.find_mask()

    def fork(self) -> "GrammarMatcher":
        other = copy(self)  # the mask is the same, and takes long to find
        other.inner = self.inner.deep_copy()
        return other


def load_grammars(directory: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> "GrammarFactory | None":
    """None, with a line in the log, where llguidance cannot tell which bytes the tokens stand for: a model without
    grammars is of more use than none."""
    try:
        return GrammarFactory(directory, vocab_size, eos_token_ids)
    except ValueError as error:
        logger.warning("%s: answers cannot be held to a grammar: %s", directory, error)
        return None


class GrammarFactory:
    """One model's tokenizer as grammars need it: which bytes each token stands for, and which ones end an answer."""

    def __init__(self, directory: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        """Raises ValueError where the tokenizer's way of writing bytes is not known."""
        text = read_tokenizer_text(directory)
        self.tokenizer = LLTokenizer(text, n_vocab=vocab_size, eos_token=list(eos_token_ids) or None)
        self._compile = lru_cache(MAX_COMPILED)(self.compile)

    def make_matcher(self, kind: str, text: str) -> GrammarMatcher:
        """At the grammar's beginning; safe from several threads.

        See `GenerationParams.grammar`. Raises Unservable where the grammar is not understood.
        """
        return self._compile(kind, text).fork()

    def compile(self, kind: str, text: str) -> GrammarMatcher:
        """What costs most of a short answer: the grammar's automaton, and the mask of the first token."""
        try:
            if kind == "regex":
                grammar = LLMatcher.grammar_from_regex(text)
            else:
                schema = text if kind == "json_schema" else json.dumps(True)
                # Free to choose, small models write blanks without end.
                grammar = LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
            matcher = LLMatcher(self.tokenizer, grammar, limits=LIMITS)
        except ValueError as error:
            raise Unservable(f"{kind}: {error}", "grammar") from None
        if matcher.is_error():
            reason = " ".join(str(matcher.get_error()).split())
            raise Unservable(f"the {kind.replace('_', ' ')} is wrong or not supported: {reason[:300]}", "grammar")
        return GrammarMatcher(matcher, kind)
