"""Seconds by shape: read in between, put in, and corrected."""

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.cost_model import CORRECTION_LIMIT
from server.engine.padded_costs import GUESSED_TOKENS, LOCAL_LIMIT, CostTable, PaddedCosts, load_table, weigh

NUM_SEQS = np.array([1, 4, 16, 64])
SEQLENS = np.array([1, 8, 32, 128])


def time_of(num_seqs: int, longest: int) -> float:
    return 1e-3 + 2e-5 * num_seqs * longest


def make_table() -> CostTable:
    seconds = [[time_of(count, length) for length in SEQLENS.tolist()] for count in NUM_SEQS.tolist()]
    return CostTable(NUM_SEQS, SEQLENS, np.array(seconds))


def make_costs() -> PaddedCosts:
    return PaddedCosts(make_table(), is_measured=True)


@given(st.integers(1, 500), st.integers(1, 1000))
@settings(deadline=None)
def test_steps_of_a_constant_and_their_tokens_are_read_exactly(num_seqs: int, longest: int) -> None:
    """Beyond the table too."""
    assert make_costs().predict(num_seqs, longest) == pytest.approx(time_of(num_seqs, longest))


def test_rows_are_lengths_and_columns_numbers_of_sequences() -> None:
    found = make_table().read(np.array([1, 64]), np.array([8, 128, 20]))
    assert found.shape == (3, 2)
    assert found[1].tolist() == pytest.approx([time_of(1, 128), time_of(64, 128)])


def test_one_line_says_the_same_of_all() -> None:
    table = CostTable(np.array([1]), SEQLENS, np.array([[1.0, 2.0, 3.0, 4.0]]))
    assert table.find(1, 8) == table.find(5, 8) == 2.0
    assert weigh(np.array([3]), np.array([1, 9])).tolist() == [[1.0], [1.0]]


def test_what_is_put_in_changes_nothing_beyond_its_neighbours() -> None:
    table = make_table().put({(8, 16): 1.0})
    assert table.find(8, 16) == 1.0
    assert (table.num_seqs.tolist(), table.seqlens.tolist()) == ([1, 4, 8, 16, 64], [1, 8, 16, 32, 128])
    for num_seqs, longest in [(4, 8), (16, 32), (2, 5), (8, 64), (8, 4), (40, 16), (8, 32), (4, 16)]:
        assert table.find(num_seqs, longest) == pytest.approx(time_of(num_seqs, longest))
    assert make_table().find(6, 16) < table.find(6, 16) < 1.0


@given(st.lists(st.floats(1e-6, 10.0), min_size=16, max_size=16))
@settings(deadline=None)
def test_no_larger_step_is_faster_once_it_rises(seconds: list[float]) -> None:
    table = CostTable(NUM_SEQS, SEQLENS, np.array(seconds).reshape(4, 4)).rise()
    found = table.read(np.arange(1, 65), np.arange(1, 129, 7))
    assert (np.diff(found, axis=0) >= -1e-9).all() and (np.diff(found, axis=1) >= -1e-9).all()


def test_table_is_the_same_from_json() -> None:
    table = make_table().put({(8, 16): 1 / 3})
    again = load_table(json.loads(json.dumps(table.dump())))
    for name in ("num_seqs", "seqlens", "seconds"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))
    assert again.num_seqs.dtype == np.int64


@pytest.mark.parametrize("factor", [0.3, 0.8, 1.7, 6.0])
def test_slower_machine_is_noticed_for_all_shapes(factor: float) -> None:
    costs = make_costs()
    rng = random.Random(0)
    for _ in range(400):
        num_seqs, longest = rng.choice(NUM_SEQS.tolist()), rng.choice(SEQLENS.tolist())
        costs.observe(num_seqs, longest, num_seqs * longest, factor * time_of(num_seqs, longest))
    for num_seqs, longest in [(1, 1), (7, 20), (64, 128)]:
        assert costs.predict(num_seqs, longest) == pytest.approx(factor * time_of(num_seqs, longest), rel=0.05)


def test_shape_that_was_measured_wrong_is_told_from_the_others() -> None:
    """Every second step is one that takes 1.8 times as long as was measured, the others are as they were."""
    costs = make_costs()
    for _ in range(300):
        costs.observe(16, 32, 512, 1.8 * time_of(16, 32))
        costs.observe(1, 8, 8, time_of(1, 8))
    assert costs.predict(16, 32) == pytest.approx(1.8 * time_of(16, 32), rel=0.05)
    assert costs.predict(1, 8) == pytest.approx(time_of(1, 8), rel=0.05)


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 128), st.floats(0.0, 1e4)), max_size=60))
@settings(deadline=None)
def test_corrections_stay_within_their_limits(steps: list[tuple[int, int, float]]) -> None:
    costs = make_costs()
    for num_seqs, longest, actual_s in steps:
        costs.observe(num_seqs, longest, num_seqs, actual_s)
        assert abs(costs.drift) <= math.log(CORRECTION_LIMIT)
        assert np.abs(costs.local).max() <= math.log(LOCAL_LIMIT)
        assert costs.predict(num_seqs, longest) > 0


@given(st.lists(st.tuples(st.integers(1, 32), st.integers(1, 128), st.floats(0.5, 2.0)), max_size=60))
def test_what_was_never_measured_is_learnt_without_falling_to_nothing(steps: list[tuple[int, int, float]]) -> None:
    costs = PaddedCosts()
    for num_seqs, longest, noise in steps:
        costs.observe(num_seqs, longest, num_seqs * longest, 1e-4 * (20 + num_seqs * longest) * noise)
    assert (costs.read(np.arange(1, 600, 7), np.arange(1, 5000, 61)) > 0).all()


def test_one_stalled_step_hardly_matters() -> None:
    costs = make_costs()
    costs.observe(16, 32, 512, 3600.0)
    assert costs.predict(16, 32) < 1.6 * time_of(16, 32)
    assert costs.predict(1, 1) < 1.3 * time_of(1, 1)


def test_without_a_warm_up_the_first_step_is_the_first_guess() -> None:
    costs = PaddedCosts()
    assert costs.predict(4, 30) == costs.tokens_per_s(4096, 512) == 0
    shape = np.array([4]), np.array([30])
    assert costs.read(*shape)[0, 0] == pytest.approx(GUESSED_TOKENS + 4 * 30)
    costs.observe(4, 30, 100, 0.5)
    assert costs.predict(4, 30) == pytest.approx(0.5)
    assert costs.predict(8, 30) == pytest.approx(0.5 * (GUESSED_TOKENS + 240) / (GUESSED_TOKENS + 120))
    costs.observe(4, 30, 100, 0.5)
    assert costs.predict(4, 30) == pytest.approx(0.5)


def test_rate_is_of_tokens_without_padding() -> None:
    """Sequences of 24 in steps padded to 32, of which 64 fit a step of 2,048."""
    costs = make_costs()
    for _ in range(200):
        costs.observe(16, 32, 16 * 24, time_of(16, 32))
    assert costs.tokens_per_s(2048, 512) == pytest.approx(64 * 24 / time_of(64, 32), rel=1e-3)
    assert costs.tokens_per_s(2048, 16) == pytest.approx(16 * 24 / time_of(16, 32), rel=1e-3)
