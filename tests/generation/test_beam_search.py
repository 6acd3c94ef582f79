"""The rules of beam search, on numbers made by hand; against transformers on real models in test_real_models."""

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.batchers.beam_search import BeamSearch, Continuation
from server.wire.generation import EarlyStopping

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


def make(
    width: int = 2, early_stopping: EarlyStopping = False, length_penalty: float = 1.0, max_tokens: int = 10
) -> BeamSearch:
    return BeamSearch(width, length_penalty, early_stopping, frozenset({END}), max_tokens)


def test_best_over_all_beams_go_on() -> None:
    beams = make()
    assert advance(beams, {1: -0.1, 2: -0.5, 3: -2.0}) == [(0, 1), (0, 2)]
    assert advance(beams, {4: -3.0, 5: -3.1}, {6: -0.1, 7: -0.2}) == [(1, 6), (1, 7)]
    assert beams.answers[0][0] == (2, 6)


def test_coverage_counts_for_finished_answers() -> None:
    """beta * sum_i log(min(sum_j p_ij, 1)): the answer that has looked at all of the source wins; live beams are not
    chosen by it, and keep what their parents have looked at."""
    beams = BeamSearch(2, 0.0, False, frozenset({END}), 10, coverage_penalty=2.0)
    candidates = np.array([[1, 2, END]]), np.array([[-0.1, -0.2, -9.0]], np.float32)
    beams.advance(*candidates, np.array([[0.75, 0.25]], np.float32))
    beams.advance(
        np.array([[END, 3, 4], [END, 5, 6]]),
        np.array([[-1.0, -8.0, -9.0], [-1.5, -8.0, -9.0]], np.float32),
        np.array([[0.75, 0.25], [0.25, 0.75]], np.float32),
    )
    assert [each.token_ids for each in beams.finished] == [(2, END), (1, END)]
    scores = [-1.7, -1.1 + 2 * math.log(0.5)]
    assert [float(each.score) for each in beams.finished] == pytest.approx(scores)
    assert beams.is_over


@pytest.mark.parametrize(
    ("early_stopping", "coverage", "waits"), [(False, 1.0, True), (False, 0.5, False), ("never", 0.5, True)]
)
def test_a_live_beam_that_covers_more_is_waited_for(
    early_stopping: EarlyStopping, coverage: float, waits: bool
) -> None:
    """It is judged as if it ended here, its coverage among that; by "never" as if it were to cover all."""
    beams = BeamSearch(1, 0.0, early_stopping, frozenset({END}), 10, coverage_penalty=1.0)
    beams.coverage = np.full((1, 2), 0.5, np.float32)
    beams.finish(np.float32(-1), (END,), (-1.0,), 0)
    assert float(beams.finished[0].score) == pytest.approx(-1 + 2 * math.log(0.5))
    beams.coverage = np.full((1, 2), coverage, np.float32)
    assert beams.is_good_enough(Continuation(0, 1, -0.1, np.float32(-2)), num_tokens=2) != waits


def test_what_nobody_looks_at_keeps_scores_finite() -> None:
    beams = BeamSearch(1, 1.0, False, frozenset({END}), 10, coverage_penalty=1.0)
    beams.advance(np.array([[END, 1]]), np.array([[-0.1, -5.0]], np.float32), np.array([[1.0, 0.0]], np.float32))
    assert -90 < beams.finished[0].score < -80


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


@pytest.mark.parametrize("logprob", [-1.0, -1.5])
def test_live_beam_is_judged_as_if_it_ended_here(logprob: float) -> None:
    """One more token would make -1.5 a better score than -1; an equal one is not better."""
    beams = make(width=1)
    assert advance(beams, {END: -1.0, END + 1: logprob}) == []
    assert beams.is_over


@pytest.mark.parametrize(
    ("logprob", "length_penalty", "goes_on"), [(-9.9, 1.0, True), (-10.0, 1.0, False), (-1.0, 0.0, False)]
)
def test_never_stops_while_a_live_beam_may_grow_better(logprob: float, length_penalty: float, goes_on: bool) -> None:
    """To max_tokens, 10, with nothing to pay for what is still to come."""
    beams = make(width=1, early_stopping="never", length_penalty=length_penalty)
    advance(beams, {END: -1.0, END + 1: logprob})
    assert beams.is_over != goes_on


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


def test_cut_before_the_first_token_gives_nothing() -> None:
    beams = make()
    beams.cut()
    assert beams.is_over and beams.finished == []


def test_each_token_has_its_own_logprob() -> None:
    beams = make(max_tokens=2)
    advance(beams, {1: -0.5, 2: -1.0})
    advance(beams, {3: -0.25}, {4: -4.0})
    assert [each.logprobs for each in beams.finished] == [(-0.5, -0.25), (-1.0, -4.0)]


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 2.0])
def test_length_penalty_counts_for_beams_that_are_cut(penalty: float) -> None:
    """By the caller or by max_tokens: the same answers with the same scores."""
    cut, limited = make(length_penalty=penalty), make(length_penalty=penalty, max_tokens=2)
    for beams in (cut, limited):
        advance(beams, {END: -1.0, 1: -0.5, 2: -2.0})
        advance(beams, {3: -0.25}, {4: -4.0})
    cut.cut()
    assert cut.finished == limited.finished and limited.is_over
    scores = {(END,): -1.0, (1, 3): -0.75 / 2**penalty}
    assert [each.token_ids for each in cut.finished] == sorted(scores, key=scores.__getitem__, reverse=True)
    assert [float(each.score) for each in cut.finished] == sorted(scores.values(), reverse=True)


@dataclass
class PlainSearch:
    """The rules as transformers has them, over whole rows of logprobs: (1 + number of stops) * width candidates of all
    beams together are sorted. Mutable."""

    beams: BeamSearch
    scores: list[float] = field(default_factory=lambda: [0.0])
    answers: list[tuple[int, ...]] = field(default_factory=lambda: [()])
    finished: list[tuple[float, tuple[int, ...]]] = field(default_factory=list)

    def advance(self, logprobs: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
        width, stops = self.beams.width, self.beams.stop_token_ids
        pairs = [(beam, token) for beam, token in np.ndindex(logprobs.shape) if logprobs[beam, token] > -np.inf]
        ranked = sorted(pairs, key=lambda pair: (-self.scores[pair[0]] - logprobs[pair], pair))
        ranked = ranked[: max(2, 1 + len(stops)) * width]
        length = len(self.answers[0]) + 1
        is_last = length >= self.beams.max_tokens
        for beam, token in ranked[:width]:
            if is_last or token in stops:
                score = (self.scores[beam] + logprobs[beam, token]) / length**self.beams.length_penalty
                self.finished.append((score, (*self.answers[beam], token)))
        self.finished = sorted(self.finished, key=lambda answer: -answer[0])[:width]
        going_on = [] if is_last else [pair for pair in ranked if pair[1] not in stops][:width]
        answers = [(*self.answers[beam], token) for beam, token in going_on]
        scores = [self.scores[beam] + float(logprobs[beam, token]) for beam, token in going_on]
        if len(self.finished) == width and going_on:
            early_stopping, penalty = self.beams.early_stopping, self.beams.length_penalty
            reach = self.beams.max_tokens if early_stopping == "never" and penalty > 0 else length
            if early_stopping is True or scores[0] / reach**penalty <= self.finished[-1][0]:
                return []
        self.answers, self.scores = answers, scores
        return going_on


def take_top(logprobs: npt.NDArray[np.float64], num_top: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """As a sampler gives them: equal ones by id, filled up where fewer are allowed."""
    ids = np.full((len(logprobs), num_top), -1, np.int64)
    values = np.full((len(logprobs), num_top), np.nan, np.float32)
    for row, allowed in enumerate(logprobs):
        order = [token for token in np.argsort(-allowed, kind="stable")[:num_top] if allowed[token] > -np.inf]
        ids[row, : len(order)], values[row, : len(order)] = order, allowed[order]
    return ids, values


@settings(deadline=None, max_examples=200)
@given(
    st.integers(0, 1 << 30),
    st.integers(1, 6),
    st.frozensets(st.integers(0, 19), max_size=6),
    st.sampled_from([-1.0, 0.0, 1.0]),
    st.sampled_from([False, True, "never"]),
)
def test_few_candidates_of_each_beam_are_enough(
    seed: int, width: int, stops: frozenset[int], penalty: float, early_stopping: EarlyStopping
) -> None:
    """Equal totals are frequent here, and exact: all logprobs are multiples of a quarter."""
    rng = np.random.default_rng(seed)
    beams = BeamSearch(width, penalty, early_stopping, stops, max_tokens=4)
    plain = PlainSearch(beams)
    while not beams.is_over:
        logprobs = rng.integers(-12, 0, (len(beams.answers), 20)) / 4
        logprobs[:, list(stops)] += rng.choice([0.0, 2.0])
        logprobs[rng.random(logprobs.shape) < 0.1] = -np.inf
        going_on = [(each.parent, each.token_id) for each in beams.advance(*take_top(logprobs, beams.num_candidates))]
        assert going_on == plain.advance(logprobs)
        assert [each.token_ids for each in beams.finished] == [token_ids for _, token_ids in plain.finished]
        for each, (score, _) in zip(beams.finished, plain.finished, strict=True):
            assert math.isclose(each.score, score, rel_tol=1e-6)
