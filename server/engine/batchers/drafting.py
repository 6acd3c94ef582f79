"""Drafts without a model: what followed the last time an answer said what it says now (prompt lookup). Pure.

Saxena, 2023 (prompt lookup decoding); Yang et al., 2023 (LLMA). Text that repeats its prompt, as summaries, edits and
code do, is guessed well by it; a wrong guess costs a row of a batch that is read from memory anyway.
"""

from collections.abc import Sequence

LONGEST, SHORTEST = 4, 2
"""Tokens that must agree. Shorter runs agree by chance."""
REACH = 4096
"""So many tokens back it looks."""


def propose_drafts(token_ids: Sequence[int], num_drafts: int) -> list[int]:
    """Up to `num_drafts` tokens that followed the latest earlier occurrence of the longest run at the end."""
    recent = list(token_ids[-REACH:])
    for length in range(min(LONGEST, len(recent) - 1), SHORTEST - 1, -1):
        place = find_last(recent, recent[-length:])
        if place >= 0:
            return recent[place + length : place + length + num_drafts]
    return []


def find_last(tokens: list[int], run: list[int]) -> int:
    """The latest place of `run` in `tokens` before its very end; -1: nowhere."""
    last = run[-1]
    for end in range(len(tokens) - 2, len(run) - 2, -1):
        if tokens[end] == last and tokens[end - len(run) + 1 : end + 1] == run:
            return end - len(run) + 1
    return -1
