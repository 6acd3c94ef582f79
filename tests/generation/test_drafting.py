"""Guesses from what was said before."""

from hypothesis import given
from hypothesis import strategies as st

from server.engine.batchers.drafting import LONGEST, SHORTEST, propose_drafts


def test_what_followed_the_latest_occurrence() -> None:
    assert propose_drafts([1, 2, 3, 4, 9, 1, 2, 3, 5, 8, 1, 2, 3], 2) == [5, 8]


def test_longer_agreement_wins_over_later() -> None:
    assert propose_drafts([1, 2, 3, 4, 7, 0, 3, 4, 8, 0, 1, 2, 3, 4], 1) == [7]


def test_one_token_alone_is_no_agreement() -> None:
    assert propose_drafts([1, 5, 2, 6, 1], 3) == []


def test_too_short_to_say_anything() -> None:
    assert propose_drafts([], 3) == propose_drafts([1], 3) == propose_drafts([1, 1], 3) == []


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 8))
def test_drafts_follow_a_run_that_stands_at_the_end(tokens: list[int], count: int) -> None:
    drafts = propose_drafts(tokens, count)
    assert len(drafts) <= count
    if drafts:
        text = ",".join(map(str, tokens[:-1] if len(drafts) > 0 else tokens))
        runs = [tokens[-length:] + drafts[:1] for length in range(SHORTEST, LONGEST + 1) if length < len(tokens)]
        assert any(",".join(map(str, run)) in f"{text},{tokens[-1]}" for run in runs)
