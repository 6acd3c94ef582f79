"""How a ColBERT reads texts: queries and documents in their own ways, queries filled up to a fixed length."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from models.info import ModelInfo
from models.keys import ModelDirectoryError
from models.late_interaction import LateInteraction
from server.text.prompts import Prompt, find_by_type
from server.text.tokenizer import Tokenizer
from server.wire.job import TokenSequence

Side = Literal["query", "document"]
SIDES: tuple[Side, ...] = ("query", "document")


class Filling(NamedTuple):
    """What shorter sequences are filled with, up to `length`. `is_attended`: the other tokens see it."""

    token_id: int
    length: int
    is_attended: bool


class SideRules(NamedTuple):
    """How texts of one side are read. Longer ones than `max_tokens` are cut; `skipped_ids` get no vector."""

    prompt: Prompt
    max_tokens: int
    filling: Filling | None
    skipped_ids: tuple[int, ...]


def find_rules(info: ModelInfo, tokenizer: Tokenizer, side: Side) -> SideRules:
    """Of a model that has `late_interaction`. Raises ModelDirectoryError."""
    late = info.late_interaction
    assert late is not None, "Only such models tell sides apart. This is a bug."
    filling = find_filling(late, tokenizer) if side == "query" else None
    max_tokens = late.max_query_tokens if side == "query" else late.max_document_tokens
    skipped_ids = tokenizer.find_ids(info.skipped_tokens) if side in late.skipping_sides else ()
    return SideRules(find_by_type(info, side), max_tokens, filling, skipped_ids)


def find_filling(late: LateInteraction, tokenizer: Tokenizer) -> Filling | None:
    """No longer than what is served of the model. Raises ModelDirectoryError where the vocabulary lacks the token."""
    if late.expansion is None:
        return None
    found = tokenizer.find_ids([late.expansion.token])
    if not found:
        raise ModelDirectoryError(
            f"tokenizer.json has no token {late.expansion.token!r}, with which queries are filled up; name another as "
            "query_expansion.token"
        )
    return Filling(found[0], tokenizer.limit_tokens(late.expansion.length), late.expansion.is_attended)


def fill_up(sequences: Sequence[TokenSequence], filling: Filling) -> list[TokenSequence]:
    """Those that are as long as that stay as they are."""
    return [fill_up_one(sequence, filling) for sequence in sequences]


def fill_up_one(sequence: TokenSequence, filling: Filling) -> TokenSequence:
    missing = filling.length - sequence.num_tokens
    if missing <= 0:
        return sequence
    ids, types = sequence.input_ids, sequence.token_type_ids
    return TokenSequence(
        np.concatenate([ids, np.full(missing, filling.token_id, np.int32)]),
        None if types is None else np.concatenate([types, np.zeros(missing, np.int32)]),
    )
