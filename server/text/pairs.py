"""Pairs that share their first text, a query and its documents, or a text and its labels: that one is tokenised once.

Exact, special tokens and types included, where a post-processor puts pairs together: the library itself tokenises both
texts apart, cuts them, and has it do so. Without one, types come from how a text was handed over.
"""

from collections import Counter
from collections.abc import Sequence

import tokenizers

from server.text.inputs import Input
from server.text.truncation import TruncationSide, leave_second, share_budget


class SharedText:
    """The first text of several pairs. Mutable: `encoding`, without special tokens, from when it is needed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.encoding: tokenizers.Encoding | None = None


def find_shared(inputs: Sequence[Input]) -> dict[str, SharedText]:
    """By the text. None of inputs that do not begin with a pair, as calls have either pairs or none."""
    if len(inputs) < 2 or not isinstance(inputs[0], tuple):
        return {}
    counts = Counter(item[0] for item in inputs if isinstance(item, tuple))
    return {text: SharedText(text) for text, count in counts.items() if count > 1}


def join_pair(
    plain: tokenizers.Tokenizer,
    pair: tuple[tokenizers.Encoding, tokenizers.Encoding],
    *,
    max_tokens: int,
    side: TruncationSide,
    add_special_tokens: bool,
    cuts_first: bool,
) -> tokenizers.Encoding:
    """Of two encodings without special tokens, cut longest first, or the first only; neither is changed. Who owns a
    token is lost. Raises InputTooLong where only the first is cut and the second fills the limit."""
    budget = max_tokens - count_special(plain, add_special_tokens=add_special_tokens)
    counts = [len(encoding) for encoding in pair]
    counts = leave_second(counts, budget) if cuts_first else share_budget(counts, budget)
    first, second = (cut(plain, encoding, count, side) for encoding, count in zip(pair, counts, strict=True))
    return plain.post_process(first, second, add_special_tokens)


def count_special(plain: tokenizers.Tokenizer, *, add_special_tokens: bool) -> int:
    """Of each pair."""
    return plain.num_special_tokens_to_add(True) if add_special_tokens else 0


def cut(
    plain: tokenizers.Tokenizer, encoding: tokenizers.Encoding, num_tokens: int, side: TruncationSide
) -> tokenizers.Encoding:
    if num_tokens >= len(encoding):
        return encoding
    copied = plain.post_process(encoding, None, False)
    copied.truncate(num_tokens, direction=side)
    return copied
