"""The search for the capacity, against made-up servers, and the signs of saturation."""

import asyncio
import math
from dataclasses import replace

import pytest

from loadtest.client import Answer
from loadtest.measure import LoopLag, Result, Sample, Traffic, Window, measure, percentile
from loadtest.open_loop import Step, Sweep, find_best, judge, run_sweep
from loadtest.saturation import Backlog, max_in_flight
from loadtest.search import Trial, best_rate, next_rate

EMPTY = measure([], Traffic("none", [], 1), Window(0, 1), mode="sweep", slo_ms=100, lag=LoopLag())


def search(capacity: float, start: float, precision: float) -> list[Trial]:
    trials: list[Trial] = []
    while (rate := next_rate(trials, start, precision)) is not None:
        trials.append(Trial(rate, rate <= capacity))
    return trials


@pytest.mark.parametrize("capacity", [0.7, 3.0, 99.0, 100.0, 101.0, 2750.0])
@pytest.mark.parametrize("precision", [0.02, 0.1])
def test_bisection_ends_within_the_precision_below_the_capacity(capacity: float, precision: float) -> None:
    trials = search(capacity, 100, precision)
    best = best_rate(trials)
    assert best is not None
    assert best <= capacity <= best * (1 + precision)
    assert len(trials) <= 20


def test_a_pass_above_a_failure_is_taken_for_luck() -> None:
    trials = [Trial(100, True), Trial(200, False), Trial(300, True)]
    assert best_rate(trials) == 100
    assert next_rate(trials, 100, 0.05) == 150


def test_nothing_passed() -> None:
    assert best_rate([Trial(100, False)]) is None
    assert next_rate([Trial(100, False)], 100, 0.05) == 50


def sweep_of(capacities: list[float], **options: int) -> tuple[list[Result], list[Step]]:
    """A sweep of a server whose capacity is another one at each run, in turn."""
    steps: list[Step] = []

    async def measure_at(step: Step) -> Result:
        steps.append(step)
        capacity = capacities[(len(steps) - 1) % len(capacities)]
        return replace(EMPTY, offered_per_s=step.rate, meets_slo=step.rate <= capacity)

    sweep = Sweep(step=Step(rate=100, duration_s=1), **options)
    return asyncio.run(run_sweep(measure_at, sweep)), steps


def test_the_sweep_finds_the_best_row_among_other_modes() -> None:
    results, _ = sweep_of([330])
    other = replace(EMPTY, mode="closed", offered_per_s=math.nan)
    best = find_best([other, *results])
    assert best is not None
    assert best.offered_per_s == pytest.approx(330, rel=0.05)


def test_the_majority_of_the_repeats_decides() -> None:
    results, steps = sweep_of([330, 0, 330], repeats=3)
    assert len({step.seed for step in steps}) == 3
    assert max(trial.rate for trial in judge(results) if trial.has_passed) == pytest.approx(330, rel=0.05)


def test_the_sweep_stops_after_its_last_rate() -> None:
    results, _ = sweep_of([0], max_rates=4)
    assert [row.offered_per_s for row in results] == [100, 50, 25, 12.5]
    assert find_best(results) is None


def test_backlog_that_falls_back_is_no_saturation() -> None:
    backlog = Backlog(limit=1000, window_s=1)
    assert not any(backlog.observe(now / 10, 40 + 30 * (now % 7)) for now in range(1000))
    assert backlog.peak == 220


def test_backlog_whose_floor_rises_is_saturation_below_the_limit() -> None:
    backlog = Backlog(limit=1000, window_s=1)
    stopped = next(now for now in range(1000) if backlog.observe(now / 10, 3 * now))
    assert 60 <= stopped <= 80


def test_backlog_at_the_limit_is_saturation_at_once() -> None:
    backlog = Backlog(limit=64, window_s=1)
    assert not backlog.observe(0.0, 63)
    assert backlog.observe(0.1, 64)


def test_the_limit_follows_littles_law() -> None:
    assert max_in_flight(1000, 0.2, 10_000) == 800
    assert max_in_flight(10, 0.2, 10_000) == 64
    assert max_in_flight(1000, 0.2, 100) == 100


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 0.999, 1.0)] == [50, 95, 99, 100, 100]
    assert percentile([7.0], 0.5) == 7
    assert math.isnan(percentile([], 0.5))


def test_a_result_counts_starts_for_latency_and_ends_for_throughput() -> None:
    ok, rejected = Answer(200), Answer(429, has_retry_after=True)
    samples = [
        Sample(0.5, 1.5, ok),  # sent in the warm-up, answered in the window
        Sample(1.0, 1.1, ok),
        Sample(1.2, 1.6, ok),
        Sample(2.9, 3.1, ok),  # answered after the window
        Sample(2.0, 2.1, rejected),
        Sample(2.0, 2.1, Answer(500)),
        Sample(2.0, 2.1, Answer(0, error="Timeout")),
        Sample(0.1, 0.2, Answer(500)),
    ]
    row = measure(samples, Traffic("mine", [], 32), Window(1, 3), mode="sweep", slo_ms=200, lag=LoopLag())
    assert (row.requests, row.errors, row.rejected, row.retry_after) == (6, 2, 1, 1)
    assert row.requests_per_s == 1.5 and row.texts_per_s == 48 and row.goodput_per_s == 0.5
    assert (round(row.p50_ms), round(row.p99_ms)) == (200, 400)
    assert "HTTP 500: 1" in row.failures and "Timeout: 1" in row.failures
    assert row.failed_share() == 0.5
