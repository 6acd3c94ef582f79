"""What goes into a step, with a clock wound by hand."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.batchers.request_queue import HORIZON_S
from server.engine.batchers.scheduler import MAX_LOOK_AHEAD, Scheduler, SchedulerLimits
from server.engine.cost_model import CostModel
from server.wire.job import Request
from tests.pure.fake_requests import FakeEngineRun, make_call, name_of

LIMITS = SchedulerLimits(max_batch_tokens=100, max_batch_requests=8, max_wait_s=0.0)
LAZY = SchedulerLimits(max_batch_tokens=100, max_batch_requests=8, max_wait_s=0.5)

calls = st.lists(
    st.tuples(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.floats(0.0005, 0.1)), min_size=1, max_size=12
)


@given(calls, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_every_request_comes_out_once_within_the_budget(
    drawn: list[tuple[list[int], float]], rng: random.Random
) -> None:
    """Done, expired or, where its client has gone, dropped: `FakeEngineRun` checks budget and double answers."""
    run = FakeEngineRun(LIMITS)
    everyone: list[Request] = []
    for seqlens, timeout_s in drawn:
        call = make_call(seqlens, arrival_s=run.now_s, timeout_s=timeout_s)
        everyone += call
        run.scheduler.add(call)
        if rng.random() < 0.3:
            gone = rng.choice(everyone)
            gone.is_cancelled |= name_of(gone) not in run.done_s.keys() | run.expired_s.keys()
        if rng.random() < 0.5:
            run.step()
    run.drain()
    assert run.scheduler.queue.num_tokens == 0
    for request in everyone:
        name = name_of(request)
        assert (name in run.done_s) + (name in run.expired_s) + request.is_cancelled == 1, name


@given(calls)
@settings(deadline=None)
def test_no_step_is_empty_while_somebody_waits(drawn: list[tuple[list[int], float]]) -> None:
    run = FakeEngineRun(LIMITS)
    for seqlens, _ in drawn:
        run.scheduler.add(make_call(seqlens, timeout_s=1e6))
    while run.scheduler.queue.heap:
        assert run.step().requests


def test_earliest_deadline_goes_first() -> None:
    run = FakeEngineRun(LIMITS)
    late, soon = make_call([60], timeout_s=20.0), make_call([60], timeout_s=5.0)
    run.scheduler.add(late)
    run.scheduler.add(soon)
    assert run.step().requests == soon
    assert run.step().requests == late


def test_deadlines_are_kept_where_order_alone_can_keep_them() -> None:
    """40 calls with shuffled deadlines, all of which can be met in the one right order."""
    run = FakeEngineRun(LIMITS, CostModel(per_token_s=5e-3))
    order = list(range(40))
    random.Random(0).shuffle(order)
    for place in order:
        run.scheduler.add(make_call([100], timeout_s=0.5 * (place + 1) - 0.005))
    run.drain()
    assert not run.expired_s
    assert len(run.done_s) == 40


def test_patient_request_runs_under_overload() -> None:
    """Its deadline is an hour away, and impatient ones keep coming faster than they can be run."""
    run = FakeEngineRun(LIMITS, CostModel(per_token_s=1e-2))
    patient = make_call([10], timeout_s=3600.0)
    run.scheduler.add(patient)
    while patient[0].is_queued and run.now_s < 3 * HORIZON_S:
        for _ in range(11):
            run.scheduler.add(make_call([10], timeout_s=20.0, arrival_s=run.now_s))
        run.step()
    assert not patient[0].is_queued


def test_cancelled_requests_no_longer_count() -> None:
    scheduler = Scheduler(LIMITS, CostModel())
    first, second = make_call([30, 40]), make_call([20])
    scheduler.add(first)
    scheduler.add(second)
    scheduler.queue.cancel(first)
    assert scheduler.queue.num_tokens == 20
    assert scheduler.next_step(0.0).requests == second
    scheduler.queue.cancel(second)
    assert scheduler.queue.num_tokens == 0


def test_request_that_does_not_fit_is_passed_over_and_first_next_time() -> None:
    scheduler = Scheduler(LIMITS, CostModel())
    call = make_call([60, 70, 10, 30, 20])
    scheduler.add(call)
    assert [request.num_tokens for request in scheduler.next_step(0.0).requests] == [60, 10, 30]
    assert [request.num_tokens for request in scheduler.next_step(0.0).requests] == [70, 20]


def test_look_ahead_is_bounded() -> None:
    """A queue full of long requests is not searched to its end for the one short enough."""
    scheduler = Scheduler(LIMITS, CostModel())
    call = make_call([60] + [50] * MAX_LOOK_AHEAD + [1])
    scheduler.add(call)
    assert scheduler.next_step(0.0).requests == call[:1]
    assert len(scheduler.queue) == MAX_LOOK_AHEAD + 1


def test_number_of_requests_is_limited_too() -> None:
    scheduler = Scheduler(LIMITS, CostModel())
    call = make_call([1] * 20)
    scheduler.add(call)
    assert scheduler.next_step(0.0).requests == call[:8]


def test_request_as_long_as_the_budget_runs_and_a_longer_one_is_never_queued() -> None:
    scheduler = Scheduler(LIMITS, CostModel())
    full = make_call([100])
    scheduler.add(full)
    assert scheduler.next_step(0.0).requests == full
    with pytest.raises(AssertionError):
        scheduler.add(make_call([101]))


def test_cancelled_requests_are_skipped_and_take_no_room() -> None:
    scheduler = Scheduler(LIMITS, CostModel())
    gone, here = make_call([90] * 3), make_call([90])
    scheduler.add(gone)
    scheduler.add(here)
    for request in gone:
        request.is_cancelled = True
    choice = scheduler.next_step(0.0)
    assert choice.requests == here
    assert not choice.expired
    assert scheduler.queue.num_tokens == 0


def test_expired_requests_are_told_once_and_never_run() -> None:
    scheduler = Scheduler(LIMITS, CostModel())
    late, fine = make_call([50, 50], timeout_s=1.0), make_call([50], timeout_s=9.0)
    scheduler.add(late)
    scheduler.add(fine)
    first, second = scheduler.next_step(1.0), scheduler.next_step(2.0)
    assert (first.expired, first.requests) == (late, fine)
    assert (second.expired, second.requests) == ([], [])


@pytest.mark.parametrize("seed", range(3))
def test_nobody_starves_under_constant_overload(seed: int) -> None:
    """Twice the engine's rate, for as long as it takes: everybody is run or told before long, long requests too."""
    run = FakeEngineRun(LIMITS, CostModel(per_token_s=1e-3))
    rng = random.Random(seed)
    arrived_s: dict[tuple[int, int], float] = {}
    for _ in range(400):
        for _ in range(4):
            call = make_call([rng.choice([5, 20, 95])], arrival_s=run.now_s, timeout_s=rng.choice([1.0, 2.0]))
            arrived_s[name_of(call[0])] = run.now_s
            run.scheduler.add(call)
        run.step()
    ended_s = run.done_s | run.expired_s
    longest_step_s = 0.1
    for name, arrival_s in arrived_s.items():
        if arrival_s < run.now_s - 3.0:
            assert name in ended_s
    for name, end_s in run.done_s.items():
        assert end_s - arrived_s[name] <= 2.0 + longest_step_s


def test_long_requests_get_their_turn_among_short_ones() -> None:
    """Short ones keep arriving and would always fill the budget; the long one, come first, is not pushed back."""
    run = FakeEngineRun(LIMITS)
    short = make_call([10] * 5)
    run.scheduler.add(short)
    long = make_call([95], arrival_s=0.0)
    run.scheduler.add(long)
    for _ in range(2):
        run.scheduler.add(make_call([10] * 10, arrival_s=run.now_s + 1e-6))
        run.step()
    assert name_of(long[0]) in run.done_s


def test_large_call_leaves_room_for_singles() -> None:
    """2,048 inputs arrive at once, single ones all the time: these wait a few steps, not for the whole call; and the
    call does not wait for them either, but gets about its half."""
    limits = SchedulerLimits(max_batch_tokens=1024, max_batch_requests=64, max_wait_s=0.0)
    run = FakeEngineRun(limits, CostModel(per_token_s=1e-4))
    whole = make_call([32] * 2048)
    run.scheduler.add(whole)
    waits_s: list[float] = []
    singles: dict[tuple[int, int], float] = {}
    while not all(name_of(request) in run.done_s for request in whole):
        for _ in range(16):  # half of a step's tokens
            single = make_call([32], arrival_s=run.now_s)
            singles[name_of(single[0])] = run.now_s
            run.scheduler.add(single)
        run.step()
    waits_s = [run.done_s[name] - arrival_s for name, arrival_s in singles.items() if name in run.done_s]
    step_s = 1024 * 1e-4
    alone_s = 2048 * 32 * 1e-4
    assert max(waits_s) < 5 * step_s
    assert len(waits_s) > 0.9 * len(singles)
    assert max(run.done_s[name_of(request)] for request in whole) < 2.2 * alone_s


def test_small_call_overtakes_the_rest_of_a_large_one() -> None:
    run = FakeEngineRun(LIMITS, CostModel(per_token_s=1e-3))
    whole = make_call([10] * 100)
    run.scheduler.add(whole)
    run.step()
    single = make_call([10], arrival_s=run.now_s)
    run.scheduler.add(single)
    while name_of(single[0]) not in run.done_s:
        run.step()
    assert len(run.done_s) < 50


def test_results_of_a_call_come_in_its_order_where_lengths_allow() -> None:
    run = FakeEngineRun(LIMITS)
    call = make_call([40] * 9)
    run.scheduler.add(call)
    run.drain()
    assert [request for step in run.steps for request in step.requests] == call


class TestWait:
    """How long a free engine waits for a fuller batch."""

    def test_empty_queue_waits_for_something_to_change(self) -> None:
        assert Scheduler(LIMITS, CostModel()).wait_s(0.0) is None

    def test_hungry_starts_at_once(self) -> None:
        scheduler = Scheduler(LIMITS, CostModel())
        scheduler.add(make_call([1]))
        assert scheduler.wait_s(0.0) == 0

    def test_lazy_waits_for_the_oldest_only_so_long(self) -> None:
        scheduler = Scheduler(LAZY, CostModel())
        scheduler.add(make_call([1], arrival_s=10.0))
        scheduler.add(make_call([1], arrival_s=10.3))
        assert scheduler.wait_s(10.3) == pytest.approx(0.2)
        assert scheduler.wait_s(10.6) == 0

    @pytest.mark.parametrize("seqlens", [[100], [50, 50], [1] * 8])
    def test_full_batch_starts_at_once(self, seqlens: list[int]) -> None:
        scheduler = Scheduler(LAZY, CostModel())
        scheduler.add(make_call(seqlens))
        assert scheduler.wait_s(0.0) == 0

    def test_urgent_deadline_shortens_the_wait(self) -> None:
        """To two predicted steps before it: time to run, and to be wrong by a factor of two."""
        scheduler = Scheduler(LAZY, CostModel(fixed_s=0.05))
        scheduler.add(make_call([10], timeout_s=0.3))
        assert scheduler.wait_s(0.0) == pytest.approx(0.3 - 2 * 0.05)

    def test_left_over_request_does_not_wait_all_over_again(self) -> None:
        scheduler = Scheduler(LAZY, CostModel())
        scheduler.add(make_call([60, 60], arrival_s=0.0))
        assert len(scheduler.next_step(0.4).requests) == 1
        assert scheduler.wait_s(0.4) == pytest.approx(0.1)

    def test_request_behind_a_full_batch_does_not_wait_all_over_again(self) -> None:
        scheduler = Scheduler(LAZY, CostModel())
        scheduler.add(make_call([1] * 9, arrival_s=0.0))
        scheduler.next_step(0.4)
        assert scheduler.wait_s(0.4) == pytest.approx(0.1)

    def test_next_arrival_after_an_empty_queue_starts_the_wait_anew(self) -> None:
        scheduler = Scheduler(LAZY, CostModel())
        scheduler.add(make_call([1], arrival_s=0.0))
        scheduler.next_step(0.5)
        scheduler.add(make_call([1], arrival_s=3.0))
        assert scheduler.wait_s(3.1) == pytest.approx(0.4)
