"""Deadline order, and client calls of many inputs spread out so that others get in between."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.batchers.request_queue import FAIR_SHARE, RequestQueue
from tests.pure.fake_requests import make_call


@given(st.lists(st.integers(0, 20), min_size=1, max_size=40))
@settings(deadline=None)
def test_earliest_deadline_first_and_first_come_among_equals(timeouts: list[int]) -> None:
    queue = RequestQueue()
    calls = [make_call([1], timeout_s=timeout) for timeout in timeouts]
    for call in calls:
        queue.push_call(call, tokens_per_s=100.0)
    popped = [queue.pop() for _ in calls]
    assert popped == [call[0] for call in sorted(calls, key=lambda call: call[0].deadline_s)]


def test_order_within_a_call_is_kept() -> None:
    queue = RequestQueue()
    call = make_call([5, 1, 7, 2])
    queue.push_call(call, tokens_per_s=0.0)
    assert [queue.pop() for _ in call] == call


def test_inputs_of_a_call_are_spread_at_their_share_of_the_rate() -> None:
    call = make_call([10, 30, 20], timeout_s=1.0)
    RequestQueue().push_call(call, tokens_per_s=100.0)
    spread = [request.virtual_deadline_s - request.deadline_s for request in call]
    assert spread == pytest.approx([0.0, 10 / (100 * FAIR_SHARE), 40 / (100 * FAIR_SHARE)])


def test_tokens_are_counted_in_and_out() -> None:
    queue = RequestQueue()
    queue.push_call(make_call([3, 4]), tokens_per_s=0.0)
    queue.push_call(make_call([5]), tokens_per_s=0.0)
    assert (queue.num_tokens, len(queue)) == (12, 3)
    assert queue.pop().num_tokens == 3
    assert (queue.num_tokens, len(queue)) == (9, 2)


def test_request_put_back_returns_to_its_old_place() -> None:
    """Also among equal deadlines: else a long request would go to the end of the line each time it does not fit."""
    queue = RequestQueue()
    call = make_call([1, 2, 3])
    queue.push_call(call, tokens_per_s=0.0)
    first = queue.pop()
    queue.push(first)
    assert [queue.pop() for _ in call] == call


def test_lower_priority_number_goes_before_every_deadline() -> None:
    queue = RequestQueue()
    (late,), (soon,) = make_call([1], timeout_s=1.0), make_call([1], timeout_s=20.0)
    late.priority = 1
    for request in (late, soon):
        queue.push_call([request], tokens_per_s=0.0)
    assert [queue.pop(), queue.pop()] == [soon, late]


def test_cancelled_requests_count_no_longer_whether_they_wait_or_run() -> None:
    queue = RequestQueue()
    call = make_call([3, 4, 5])
    queue.push_call(call, tokens_per_s=0.0)
    running = queue.pop()
    queue.cancel([running, call[1]])
    queue.cancel([call[1]])
    assert running.is_cancelled and call[1].is_cancelled and not call[2].is_cancelled
    assert queue.num_tokens == 5
    assert queue.pop() is call[1] and queue.num_tokens == 5
