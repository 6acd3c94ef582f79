"""The time of a step: fitted to measurements, never negative, and corrected by what steps really take."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.cost_model import CORRECTION_LIMIT, CostModel, Rate, StepCost, cost_of_lengths, fit_cost_model

LENGTHS = (8, 64, 256)
COSTS = [StepCost(count * length, count * length**2) for length in LENGTHS for count in (1, 4, 16)]
TRUE = (5e-4, 2e-5, 3e-9)


def time_of(cost: StepCost, coefficients: tuple[float, float, float] = TRUE) -> float:
    fixed_s, per_token_s, per_square_s = coefficients
    return fixed_s + per_token_s * cost.num_tokens + per_square_s * cost.sum_squares


def test_known_coefficients_are_recovered() -> None:
    model = fit_cost_model([(cost, time_of(cost)) for cost in COSTS])
    assert (model.fixed_s, model.per_token_s, model.per_square_s) == pytest.approx(TRUE, rel=1e-6)


def test_noise_of_a_tenth_costs_a_tenth() -> None:
    rng = random.Random(0)
    model = fit_cost_model([(cost, time_of(cost) * rng.uniform(0.9, 1.1)) for cost in COSTS * 3])
    for cost in COSTS:
        assert model.predict(cost) == pytest.approx(time_of(cost), rel=0.1)


@given(st.lists(st.tuples(st.sampled_from(COSTS), st.floats(1e-6, 10.0)), max_size=12))
@settings(deadline=None)
def test_no_coefficient_is_ever_negative(samples: list[tuple[StepCost, float]]) -> None:
    """Whatever was measured: a longer batch must not look cheaper, and nothing may look free."""
    model = fit_cost_model(samples)
    assert min(model.fixed_s, model.per_token_s, model.per_square_s) >= 0
    assert (model.predict(StepCost(1, 1)) > 0) == bool(samples)


def test_time_that_falls_with_length_is_fitted_as_a_constant() -> None:
    model = fit_cost_model([(StepCost(n, n * n), 0.01 - n * 1e-6) for n in (10, 100, 1000)])
    assert model.per_token_s == model.per_square_s == 0
    assert model.fixed_s == pytest.approx(0.0096, rel=0.05)


def test_a_term_that_would_be_negative_leaves_the_other_two() -> None:
    model = fit_cost_model([(cost, time_of(cost, (5e-4, 2e-5, -1e-11))) for cost in COSTS])
    assert model.per_square_s == 0
    assert (model.fixed_s, model.per_token_s) == pytest.approx((5e-4, 2e-5), rel=0.01)


def test_without_a_warm_up_the_first_step_is_the_first_guess() -> None:
    model = fit_cost_model([])
    assert model.predict(COSTS[0]) == model.tokens_per_s(1024) == 0
    model.observe(COSTS[0], 1, 0.5)
    assert model.predict(COSTS[0]) == pytest.approx(0.5)
    assert model.tokens_per_s(1024) == pytest.approx(COSTS[0].num_tokens / 0.5)


@pytest.mark.parametrize("factor", [0.25, 0.8, 1.7, 6.0])
def test_online_correction_converges(factor: float) -> None:
    model = CostModel(*TRUE)
    rng = random.Random(0)
    for _ in range(100):
        cost = rng.choice(COSTS)
        model.observe(cost, 1, time_of(cost) * factor)
    for cost in COSTS:
        assert model.predict(cost) == pytest.approx(time_of(cost) * factor, rel=1e-3)


@given(st.lists(st.floats(0.0, 1e4), max_size=60))
@settings(deadline=None)
def test_correction_stays_within_its_limit(actual_s: list[float]) -> None:
    model = CostModel(*TRUE)
    for seconds in actual_s:
        model.observe(COSTS[0], 1, seconds)
        assert 1 / CORRECTION_LIMIT * 0.999 <= model.correction <= CORRECTION_LIMIT * 1.001


@pytest.mark.parametrize("actual_s", [3600.0, 1e-12])
def test_one_stalled_step_hardly_matters_and_many_count_up_to_the_limit(actual_s: float) -> None:
    """And one that took no time at all."""
    model = CostModel(*TRUE)
    model.observe(COSTS[0], 1, actual_s)
    assert 1 / 1.3 < model.correction < 1.3
    for _ in range(100):
        model.observe(COSTS[0], 1, actual_s)
    assert model.correction == pytest.approx(CORRECTION_LIMIT if actual_s > 1 else 1 / CORRECTION_LIMIT)


def test_rate_is_that_of_full_batches_as_long_as_seen_lately() -> None:
    model = CostModel(*TRUE)
    cost = StepCost(4 * 200, 4 * 200**2)
    for _ in range(200):
        model.observe(cost, 4, time_of(cost))
    assert model.tokens_per_s(2000) == pytest.approx(2000 / time_of(StepCost(2000, 10 * 200**2)), rel=1e-3)


def test_cost_of_lengths_counts_tokens_and_their_squares() -> None:
    assert cost_of_lengths([3, 1, 70_000]) == StepCost(70_004, 9 + 1 + 4_900_000_000)


def test_rate_forgets_what_is_long_ago() -> None:
    """Weighed by the device's time: many short steps count no more than one long one."""
    rate = Rate()
    assert rate.tokens_per_s == 0
    for _ in range(1000):
        rate.observe(100, 0.1)
    assert rate.tokens_per_s == pytest.approx(1000)
    rate.observe(1, 0.001)
    assert rate.tokens_per_s == pytest.approx(1000, rel=1e-3)
    for _ in range(60):
        rate.observe(10, 1.0)
    assert rate.tokens_per_s == pytest.approx(10, rel=0.3)
