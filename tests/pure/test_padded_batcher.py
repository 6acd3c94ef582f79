"""What an engine that pads is given and what comes out, with a clock wound by hand.

What all batchers of encoders share is tested in `test_packed_batcher`.
"""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine import EngineError, OutOfMemory
from server.engine.batchers.batcher import StepLimits, StepResult
from server.engine.batchers.job_queue import HORIZON_S
from server.engine.batchers.padded import PaddedBatcher
from server.engine.padded_costs import GUESS, CostTable, PaddedCosts
from server.errors import DeadlineExceeded, EngineFailure
from tests.pure.fake_requests import OUTPUT, REDUCERS, Call, FakeEngineRun

LIMITS = StepLimits(max_batch_tokens=100, max_batch_requests=8, max_wait_s=0.0)
WIDE = StepLimits(max_batch_tokens=1024, max_batch_requests=64, max_wait_s=0.0)
LAZY = StepLimits(max_batch_tokens=100, max_batch_requests=8, max_wait_s=0.5)

calls = st.lists(
    st.tuples(st.lists(st.integers(1, 100), min_size=1, max_size=15), st.floats(0.0005, 0.1), st.integers(-1, 1)),
    min_size=1,
    max_size=8,
)


def start(limits: StepLimits, *, fixed_s: float = 1e-3, per_token_s: float = 1e-4) -> FakeEngineRun:
    """The engine pads: a step takes so long, and longer by each token of its sequences, all as long as the longest."""
    lines = np.array([1, 1000])
    table = CostTable(lines, lines, fixed_s + per_token_s * np.outer(lines, lines))
    batcher = PaddedBatcher(limits, PaddedCosts(table, is_measured=True), [OUTPUT], REDUCERS)
    return FakeEngineRun(limits, another=batcher)


def rows(call: Call, *indices: int) -> list[tuple[int, int]]:
    return [(call.number, index) for index in indices or range(len(call.seqlens))]


@given(calls, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_every_call_ends_once_within_the_limits(drawn: list[tuple[list[int], float, int]], rng: random.Random) -> None:
    """Done, expired or, where its client has gone, dropped: `FakeEngineRun` checks padded sizes and double answers."""
    run = start(LIMITS)
    everyone: list[Call] = []
    for seqlens, timeout_s, priority in drawn:
        everyone.append(run.add(seqlens, timeout_s=timeout_s, priority=priority))
        if rng.random() < 0.3:
            run.cancel(rng.choice(everyone))
        if rng.random() < 0.5:
            run.step()
    run.drain()
    for call in everyone:
        is_done, is_late = len(call.done_s) == len(call.seqlens), isinstance(call.error, DeadlineExceeded)
        assert is_done + is_late + call.is_cancelled == 1, call


@given(calls)
@settings(deadline=None, max_examples=30)
def test_no_input_is_lost_or_computed_twice(drawn: list[tuple[list[int], float, int]]) -> None:
    run = start(LIMITS)
    everyone = [run.add(seqlens, timeout_s=1e6, priority=priority) for seqlens, _, priority in drawn]
    while run.batcher.num_queued_tokens:
        assert run.step(), "No step is empty while somebody waits."
    computed = sorted(row for step in run.steps for row in step)
    assert computed == sorted(row for call in everyone for row in rows(call))


def test_like_lengths_share_steps() -> None:
    run = start(WIDE)
    call = run.add([10, 90, 11, 92, 10, 91])
    assert sorted(run.step()) == rows(call, 0, 2, 4)
    assert sorted(run.step()) == rows(call, 1, 3, 5)


def test_all_share_one_step_where_that_is_cheaper() -> None:
    run = start(WIDE, fixed_s=1.0)
    call = run.add([10, 90, 11])
    assert sorted(run.step()) == rows(call)


def test_batch_of_the_most_urgent_goes_first() -> None:
    """Cheap ones do not overtake it, and those of its own length go with it."""
    run = start(WIDE)
    cheap, urgent, alike = run.add([5, 5]), run.add([90], timeout_s=5.0), run.add([88])
    assert sorted(run.step()) == rows(urgent) + rows(alike)
    assert run.step() == rows(cheap)


def test_lower_priority_number_goes_before_any_deadline() -> None:
    run = start(WIDE)
    late, soon = run.add([5], timeout_s=1.0), run.add([90], priority=-1)
    assert run.step() == rows(soon)
    assert run.step() == rows(late)


def test_who_comes_joins_the_round_while_there_is_room() -> None:
    """And goes first if it is more urgent."""
    run = start(WIDE)
    first = run.add([10, 90])
    assert run.step() == rows(first, 0)
    alike, urgent = run.add([89]), run.add([30], timeout_s=1.0)
    assert run.step() == rows(urgent)
    assert sorted(run.step()) == [*rows(first, 1), *rows(alike)]


def test_who_comes_when_the_round_is_full_waits_for_the_next() -> None:
    run = start(LIMITS)
    first = run.add([10, 90])
    assert run.step() == rows(first, 0)
    urgent = run.add([10], timeout_s=1.0, priority=-1)
    assert run.step() == rows(first, 1)
    assert run.step() == rows(urgent)


def test_step_is_within_the_budget_with_its_padding() -> None:
    """Seven sequences of up to 20 tokens fit a round of 100, and no step: even where one would be cheaper."""
    run = start(LIMITS, fixed_s=1.0)
    call = run.add([10, 10, 12, 12, 14, 18, 20])
    sizes = [len(run.step()) for _ in range(2)]
    assert sum(sizes) == 7 and max(sizes) <= 100 // 14
    assert call.ended_s is not None


def test_patient_call_runs_under_overload() -> None:
    """Its deadline is an hour away, it is longer than all, and impatient ones keep coming faster than they can run."""
    run = start(LIMITS, per_token_s=1e-2)
    patient = run.add([90], timeout_s=3600.0)
    while patient.ended_s is None and run.now_s < 3 * HORIZON_S:
        for _ in range(11):
            run.add([10], timeout_s=20.0)
        run.step()
    assert patient.done_s


@pytest.mark.parametrize("seed", range(2))
def test_nobody_starves_under_constant_overload(seed: int) -> None:
    """Everybody is run or told before long, long inputs too."""
    run = start(LIMITS, per_token_s=1e-3)
    rng = random.Random(seed)
    added: list[Call] = []
    for _ in range(300):
        added += [run.add([rng.choice([5, 20, 95])], timeout_s=rng.choice([1.0, 2.0])) for _ in range(4)]
        run.step()
    longest_step_s = 0.101
    assert all(call.ended_s is not None for call in added if call.arrival_s < run.now_s - 3.0)
    assert all(call.ended_s - call.arrival_s <= 2.0 + longest_step_s for call in added if call.ended_s is not None)
    assert any(call.done_s for call in added if call.seqlens == [95])


@pytest.mark.parametrize("length", [8, 32, 200])
def test_large_call_leaves_room_for_singles(length: int) -> None:
    """500 inputs of 32 tokens arrive at once, single ones all the time, as long or not: these are in the next round,
    and the call gets its half."""
    run = start(WIDE)
    whole = run.add([32] * 500)
    singles: list[Call] = []
    period_s, due_s = length * 1e-4 * 2, 0.0  # half of what the engine can do
    while whole.ended_s is None:
        while due_s <= run.now_s:
            singles.append(run.add([length]))
            due_s += period_s
        run.step()
    round_s = 1024 * 1e-4
    done = [call for call in singles if call.done_s]
    assert max(call.last_done_s - call.arrival_s for call in done) < 3.5 * round_s
    assert len(done) > 0.8 * len(singles)
    assert whole.last_done_s < 2.4 * 500 * 32 * 1e-4


def test_cancelled_calls_of_a_round_take_no_room() -> None:
    run = start(WIDE)
    first, gone = run.add([10], timeout_s=1.0), run.add([90, 91])
    assert run.step() == rows(first)
    assert run.batcher.num_queued_tokens == 181
    run.cancel(gone)
    assert run.batcher.num_queued_tokens == 0
    assert run.step() == []
    run.batcher.check_books()


def test_late_calls_of_a_round_are_told_once_and_never_run() -> None:
    run = start(WIDE)
    first, late = run.add([10], timeout_s=1.0), run.add([90] * 70, timeout_s=2.0)
    assert run.step() == rows(first)
    run.now_s = 2.0
    assert run.step() == []
    assert isinstance(late.error, DeadlineExceeded)
    run.drain()


def test_failed_step_is_halved_until_the_culprit_is_alone() -> None:
    run = start(WIDE)
    good, culprit = run.add([20, 21, 22]), run.add([20])
    step = run.form()
    assert step is not None
    steps = [step]
    while steps:
        step = steps.pop(0)
        is_bad = any(item.encoding.stream is culprit.stream for item in step.inputs)
        output = None if is_bad else run.engine.run(step.batch)
        result = StepResult(step, 0.0, 1.0, output, EngineError("the culprit") if is_bad else None)
        steps += run.batcher.settle(result, 1.0)
        run.batcher.deliver()
    assert isinstance(culprit.error, EngineFailure) and len(good.done_s) == 3


def test_steps_stay_as_small_as_there_was_memory_for() -> None:
    """Padding included."""
    run = start(WIDE)
    run.add([20] * 8)
    step = run.form()
    assert step is not None
    run.batcher.settle(StepResult(step, 0.0, 1.0, None, OutOfMemory("nothing left")), 1.0)
    run.add([15] * 8)
    while (later := run.form()) is not None:
        assert later.cost.num_tokens <= step.cost.num_tokens // 2


class TestWait:
    def test_hungry_starts_at_once_and_an_empty_queue_never(self) -> None:
        run = start(LIMITS)
        assert run.batcher.wait_s(0.0) is None
        run.add([1])
        assert run.batcher.wait_s(0.0) == 0

    def test_lazy_waits_for_the_oldest_but_goes_on_with_a_round_at_once(self) -> None:
        run = start(LAZY)
        run.add([5, 60], arrival_s=10.0)
        assert run.batcher.wait_s(10.2) == pytest.approx(0.3)
        run.now_s = 10.5
        run.step()
        assert run.batcher.wait_s(10.5) == 0
        run.step()
        run.add([5], arrival_s=11.0)
        assert run.batcher.wait_s(11.0) == pytest.approx(0.5)

    def test_urgent_deadline_shortens_the_wait(self) -> None:
        """To twice the time that the queue takes, at the rate of full steps as padded as lately."""
        run = start(LAZY, fixed_s=0.0, per_token_s=1e-3)
        run.add([50], timeout_s=0.3)
        assert run.batcher.wait_s(0.0) == pytest.approx(0.3 - 2 * 0.05)

    def test_nothing_is_computed_before_what_was_is_handed_out(self) -> None:
        run = start(WIDE)
        run.add([10, 90])
        step = run.form()
        assert step is not None
        run.batcher.settle(StepResult(step, 0.0, 1.0, run.engine.run(step.batch), None), 1.0)
        assert run.batcher.wait_s(1.0) is None
        run.batcher.deliver()
        assert run.batcher.wait_s(1.0) == 0


def test_steps_are_priced_with_their_padding() -> None:
    run = start(WIDE)
    run.add([28, 30, 32])
    step = run.form()
    assert step is not None
    assert (step.cost.num_tokens, step.cost.sum_squares, step.batch.num_tokens) == (96, 3 * 32**2, 90)
    assert step.predicted_s == pytest.approx(1e-3 + 96e-4)


def test_steps_that_take_longer_are_learned_from() -> None:
    run = start(WIDE)
    before = run.batcher.tokens_per_s()
    for _ in range(50):
        run.add([64] * 16)
        step = run.form()
        assert step is not None
        taken_s = 2 * (1e-3 + 1024e-4)
        result = StepResult(step, 0.0, taken_s, run.engine.run(step.batch), None)
        run.batcher.observe(result)
        run.batcher.settle(result, 1.0)
        run.batcher.deliver()
    assert run.batcher.tokens_per_s() == pytest.approx(before / 2, rel=0.02)


def test_without_measurements_steps_are_divided_by_a_guess() -> None:
    batcher = PaddedBatcher(WIDE, PaddedCosts(), [OUTPUT], REDUCERS)
    run = FakeEngineRun(WIDE, another=batcher)
    call = run.add([10, 90, 11, 92])
    assert batcher.costs.table is GUESS and batcher.tokens_per_s() == batcher.predict_queue() == 0
    assert sorted(run.step()) == rows(call, 0, 2)
    assert sorted(run.step()) == rows(call, 1, 3)


def test_canary_is_nobodys() -> None:
    canary = start(LIMITS).batcher.form_canary()
    assert canary.is_canary and canary.batch.num_tokens == 1 and canary.predicted_s == pytest.approx(1.1e-3)
