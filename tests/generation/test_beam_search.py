"""The rules of beam search, on numbers made by hand; against transformers on real models in test_real_models."""

import numpy as np

from server.engine.batchers.beam_search import BeamSearch

END = 9


def advance(beams: BeamSearch, *rows: dict[int, float]) -> list[tuple[int, int]]:
    """Each live beam's candidates as {token: logprob} -> (parent, token) of those that go on."""
    width = beams.num_candidates
    ids = np.full((len(rows), width), -1, np.int64)
    logprobs = np.full((len(rows), width), np.nan, np.float32)
    for row, candidates in enumerate(rows):
        for place, (token, logprob) in enumerate(candidates.items()):
            ids[row, place], logprobs[row, place] = token, logprob
    return [(each.parent, each.token_id) for each in beams.advance(ids, logprobs)]


def make(width: int = 2, early_stopping: bool = False, length_penalty: float = 1.0, max_tokens: int = 10) -> BeamSearch:
    return BeamSearch(width, length_penalty, early_stopping, frozenset({END}), max_tokens)


def test_best_over_all_beams_go_on() -> None:
    beams = make()
    assert advance(beams, {1: -0.1, 2: -0.5, 3: -2.0}) == [(0, 1), (0, 2)]
    assert advance(beams, {4: -3.0, 5: -3.1}, {6: -0.1, 7: -0.2}) == [(1, 6), (1, 7)]
    assert beams.answers[0][0] == (2, 6)


def test_ended_answers_wait_for_better_ones() -> None:
    beams = make()
    assert advance(beams, {END: -0.1, 1: -0.2, 2: -0.3}) == [(0, 1), (0, 2)]
    assert [each.token_ids for each in beams.finished] == [(END,)]
    # With two finished the search is over, as no live beam, if it ended here, would be better than the worse of them.
    assert advance(beams, {END: -0.1, 3: -5.0}, {4: -6.0, 5: -7.0}) == []
    assert beams.is_over
    assert [each.token_ids for each in beams.finished] == [(END,), (1, END)]


def test_live_beam_that_may_still_win_goes_on() -> None:
    beams = make()
    advance(beams, {1: -0.1, 2: -0.2, 3: -9.0})
    assert advance(beams, {END: -3.0, 4: -0.1}, {END: -3.1, 5: -0.1}) == [(0, 4), (1, 5)]
    assert not beams.is_over


def test_early_stopping_takes_the_first_answers() -> None:
    beams = make(early_stopping=True, length_penalty=0.0)
    assert advance(beams, {END: -2.0, 1: -0.1}) == [(0, 1)]
    assert advance(beams, {END: -2.0, 2: -0.1}) == []
    assert len(beams.finished) == 2


def test_an_end_outside_the_first_width_does_not_count() -> None:
    beams = make()
    assert advance(beams, {1: -0.1, 2: -0.2, END: -0.3}) == [(0, 1), (0, 2)]
    assert beams.finished == []


def test_length_limit_ends_all() -> None:
    beams = make(max_tokens=1)
    assert advance(beams, {1: -0.1, 2: -0.2, 3: -0.3}) == []
    assert [each.token_ids for each in beams.finished] == [(1,), (2,)]


def test_length_penalty_prefers_longer_answers() -> None:
    for penalty, best in ((0.0, (END,)), (3.0, (1, END))):
        beams = make(length_penalty=penalty)
        advance(beams, {END: -1.0, 1: -1.0, 2: -1.5})
        advance(beams, {END: -0.5, 3: -3.0}, {END: -3.0, 4: -4.0})
        assert beams.finished[0].token_ids == best


def test_forbidden_tokens_are_no_candidates() -> None:
    beams = make()
    assert advance(beams, {1: -0.1}) == [(0, 1)]


def test_cut_gives_out_what_there_is() -> None:
    beams = make()
    advance(beams, {1: -0.1, 2: -0.2})
    beams.cut()
    assert beams.is_over and [each.token_ids for each in beams.finished] == [(1,), (2,)]
