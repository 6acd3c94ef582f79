"""Guesses from what was said before."""

from hypothesis import given
from hypothesis import strategies as st

from server.engine.batchers.drafting import LONGEST, REACH, SHORTEST, propose_drafts


def test_what_followed_the_latest_occurrence() -> None:
    assert propose_drafts([1, 2, 3, 4, 9, 1, 2, 3, 5, 8, 1, 2, 3], 2) == [5, 8]


def test_longer_agreement_wins_over_later() -> None:
    assert propose_drafts([1, 2, 3, 4, 7, 0, 3, 4, 8, 0, 1, 2, 3, 4], 1) == [7]


def test_four_tokens_are_the_longest_agreement_that_counts() -> None:
    assert propose_drafts([1, 2, 3, 4, 7, 0, 2, 3, 4, 8, 0, 1, 2, 3, 4], 1) == [7]
    assert propose_drafts([9, 1, 2, 3, 4, 7, 0, 1, 2, 3, 4, 8, 9, 1, 2, 3, 4], 1) == [8]


def test_one_token_alone_is_no_agreement() -> None:
    assert propose_drafts([1, 5, 2, 6, 1], 3) == []


def test_too_short_to_say_anything() -> None:
    assert propose_drafts([], 3) == propose_drafts([1], 3) == propose_drafts([1, 1], 3) == []


def test_what_was_said_too_long_ago_is_forgotten() -> None:
    again = [1, 2, 3]
    assert propose_drafts([*again, *range(10, REACH + 5), 1, 2], 1) == [3]
    assert propose_drafts([*again, *range(10, REACH + 10), 1, 2], 1) == []


def propose_plainly(tokens: list[int], count: int) -> list[int]:
    for length in range(LONGEST, SHORTEST - 1, -1):
        for place in reversed(range(len(tokens) - length)):
            if tokens[place : place + length] == tokens[-length:]:
                return tokens[place + length : place + length + count]
    return []


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 8))
def test_drafts_are_those_of_the_plain_definition(tokens: list[int], count: int) -> None:
    assert propose_drafts(tokens, count) == propose_plainly(tokens, count)
