"""Pairs that share their first text, a query and its documents: that one is tokenised once.

Exact, special tokens and types included, where a post-processor puts pairs together: the library itself tokenises both
texts apart, cuts them, and has it do so. Without one, types come from how a text was handed over.
"""

from collections.abc import Sequence

import tokenizers

from server.text.inputs import Input
from server.text.truncation import Side, share_budget


class SharedText:
    """The first text of all pairs of a call. Mutable: `encoding`, without special tokens, from when it is needed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.encoding: tokenizers.Encoding | None = None


def find_shared(inputs: Sequence[Input]) -> SharedText | None:
    """None where there are no two pairs, or not all inputs are pairs with the same first text."""
    first = inputs[0] if len(inputs) > 1 else None
    if not isinstance(first, tuple):
        return None
    is_shared = all(isinstance(item, tuple) and item[0] == first[0] for item in inputs)
    return SharedText(first[0]) if is_shared else None


def join_pair(
    plain: tokenizers.Tokenizer,
    pair: tuple[tokenizers.Encoding, tokenizers.Encoding],
    *,
    max_tokens: int,
    side: Side,
    add_special_tokens: bool,
) -> tokenizers.Encoding:
    """Of two encodings without special tokens, cut longest first; neither is changed. Who owns a token is lost."""
    budget = max_tokens - count_special(plain, add_special_tokens=add_special_tokens)
    counts = share_budget([len(encoding) for encoding in pair], budget)
    first, second = (cut(plain, encoding, count, side) for encoding, count in zip(pair, counts, strict=True))
    return plain.post_process(first, second, add_special_tokens)


def count_special(plain: tokenizers.Tokenizer, *, add_special_tokens: bool) -> int:
    """Of each pair."""
    return plain.num_special_tokens_to_add(True) if add_special_tokens else 0


def cut(plain: tokenizers.Tokenizer, encoding: tokenizers.Encoding, num_tokens: int, side: Side) -> tokenizers.Encoding:
    if num_tokens >= len(encoding):
        return encoding
    copied = plain.post_process(encoding, None, False)
    copied.truncate(num_tokens, direction=side)
    return copied
