"""Places are counted once, over processes, and always come back."""

import multiprocessing
import os
import signal
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import Overloaded
from server.http.admission import Admission, Ticket, TokenEstimator, clear_slot

NEVER = float("inf")


def admit(admission: Admission, num_inputs: int = 1, num_tokens: int = 10, **options: float) -> Ticket:
    return admission.admit(
        num_inputs,
        num_tokens,
        deadline_s=options.get("deadline_s", NEVER),
        tokens_per_s=options.get("tokens_per_s", 0.0),
    )


def test_counts_and_releases() -> None:
    admission = Admission(10)
    with admit(admission, 3, 30) as ticket:
        assert (admission.num_inputs, admission.num_tokens) == (3, 30)
        ticket.correct(5, 45)
        assert (admission.num_inputs, admission.num_tokens) == (5, 45)
    assert (admission.num_inputs, admission.num_tokens) == (0, 0)


def test_windows_need_places_as_well() -> None:
    """Of a call that has some already, and keeps them where there are no more."""
    admission = Admission(10)
    with admit(admission, 6, 60), admit(admission, 1, 10, tokens_per_s=50.0) as ticket:
        with pytest.raises(Overloaded, match=r"6 of 10 inputs are waiting and the texts .* make 5 windows") as caught:
            ticket.correct(5, 50)
        assert 0.7 <= caught.value.retry_after_s <= 1.4
        assert (admission.num_inputs, admission.num_tokens) == (7, 70)
        ticket.correct(4, 40)
        assert (admission.num_inputs, admission.num_tokens) == (10, 100)
    assert (admission.num_inputs, admission.num_tokens) == (0, 0)


def test_releases_on_an_exception() -> None:
    admission = Admission(10)
    with pytest.raises(KeyError), admit(admission):
        raise KeyError
    assert (admission.num_inputs, admission.num_tokens) == (0, 0)


def test_full_is_exactly_full() -> None:
    admission = Admission(4)
    with admit(admission, 3):
        with pytest.raises(Overloaded) as caught:
            admit(admission, 2)
        assert caught.value.retry_after_s == 1.0, "nothing is known of the speed yet"
        with admit(admission, 1):
            assert admission.num_inputs == 4
    assert admission.num_inputs == 0


def test_retry_is_within_the_time_the_queue_takes() -> None:
    admission = Admission(1)
    with admit(admission, 1, 1000):
        for _ in range(20):
            with pytest.raises(Overloaded) as caught:
                admit(admission, tokens_per_s=500.0)
            assert 1.0 <= caught.value.retry_after_s <= 2.0


def test_a_deadline_out_of_reach() -> None:
    admission = Admission(100, clock=lambda: 50.0)
    with admit(admission, 1, 1000):
        with pytest.raises(Overloaded) as caught:
            admit(admission, deadline_s=51.9, tokens_per_s=500.0)
        assert caught.value.code == "deadline_unreachable"
        assert 1.0 <= caught.value.retry_after_s <= 2.0
        with admit(admission, 1, 100, deadline_s=52.1, tokens_per_s=500.0):
            pass
        with admit(admission, deadline_s=50.1, tokens_per_s=0.0):
            pass


def test_an_empty_queue_refuses_nobody() -> None:
    """Not even where the deadline has passed already: nobody who waits is the reason."""
    for deadline_s in (50.001, 49.0):
        with admit(Admission(100, clock=lambda: 50.0), 1, 10**9, deadline_s=deadline_s, tokens_per_s=0.001):
            pass


def test_a_ticket_released_twice_counts_once() -> None:
    admission = Admission(10)
    with admit(admission, 2, 20):
        ticket = admit(admission, 3, 30)
        for _ in range(2):
            ticket.__exit__(None, None, None)
        assert (admission.num_inputs, admission.num_tokens) == (2, 20)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 50), st.booleans()), max_size=40))
def test_never_over_the_limit_and_never_off(steps: list[tuple[int, int, bool]]) -> None:
    admission = Admission(12)
    held: list[tuple[Ticket, int, int]] = []
    for num_inputs, num_tokens, is_release in steps:
        if is_release and held:
            held.pop(0)[0].__exit__(None, None, None)
        else:
            try:
                ticket = admit(admission, num_inputs, 0)
            except Overloaded:
                assert sum(inputs for _, inputs, _ in held) + num_inputs > 12
                continue
            ticket.correct(num_inputs, num_tokens)
            held.append((ticket, num_inputs, num_tokens))
        assert admission.num_inputs == sum(inputs for _, inputs, _ in held) <= 12
        assert admission.num_tokens == sum(tokens for _, _, tokens in held)


def test_workers_share_one_count(tmp_path: Path) -> None:
    path = tmp_path / "slots"
    workers = [Admission(5, path=path, worker=index, num_workers=3) for index in range(3)]
    with admit(workers[0], 2, 20), admit(workers[1], 2, 30):
        assert [(worker.num_inputs, worker.num_tokens) for worker in workers] == [(4, 50)] * 3
        assert [worker.own_inputs for worker in workers] == [2, 2, 0]
        with pytest.raises(Overloaded):
            admit(workers[2], 2)
        with admit(workers[2], 1) as ticket:
            with pytest.raises(Overloaded):
                ticket.correct(2, 0)
            assert workers[0].num_inputs == 5
    assert [worker.num_inputs for worker in workers] == [0, 0, 0]
    for worker in workers:
        worker.close()


def test_a_worker_that_starts_again_begins_with_nothing(tmp_path: Path) -> None:
    path = tmp_path / "slots"
    other = Admission(5, path=path, worker=0, num_workers=2)
    lost = Admission(5, path=path, worker=1, num_workers=2)
    admit(lost, 3, 30)
    assert other.num_inputs == 3
    again = Admission(5, path=path, worker=1, num_workers=2)
    assert other.num_inputs == 0
    admit(again, 2, 20)
    clear_slot(path, 1)
    assert (other.num_inputs, other.num_tokens) == (0, 0)
    for admission in (other, lost, again):
        admission.close()


def test_tickets_released_after_close_count_for_nobody(tmp_path: Path) -> None:
    path = tmp_path / "slots"
    other = Admission(5, path=path, worker=0, num_workers=2)
    closing = Admission(5, path=path, worker=1, num_workers=2)
    ticket = admit(closing, 3, 30)
    closing.close()
    ticket.__exit__(None, None, None)
    assert (other.num_inputs, other.num_tokens) == (0, 0)
    other.close()


def hammer(path: Path, worker: int, barrier: Barrier, worst: "multiprocessing.Queue[int]") -> None:
    """Take and give places as fast as possible; report the largest count seen."""
    admission = Admission(5, path=path, worker=worker, num_workers=3)
    barrier.wait()
    most = 0
    for step in range(1000):
        try:
            with admit(admission, 1 + step % 4):
                most = max(most, admission.num_inputs)
        except Overloaded:
            pass
    worst.put(most)


def hold_and_hang(path: Path, barrier: Barrier) -> None:
    admission = Admission(5, path=path, worker=1, num_workers=2)
    admit(admission, 5)
    barrier.wait()
    signal.pause()


def test_processes_never_pass_the_limit_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, worst = context.Barrier(3), context.Queue()
    children = [context.Process(target=hammer, args=(tmp_path / "slots", i, barrier, worst)) for i in range(3)]
    for child in children:
        child.start()
    assert max(worst.get(timeout=60) for _ in children) <= 5
    for child in children:
        child.join()
    watcher = Admission(5, path=tmp_path / "slots", worker=0, num_workers=3)
    assert watcher.num_inputs == 0
    watcher.close()


def test_what_a_killed_worker_held_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "slots"
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    survivor = Admission(5, path=path, worker=0, num_workers=2)
    child = context.Process(target=hold_and_hang, args=(path, barrier))
    child.start()
    barrier.wait(60)
    with pytest.raises(Overloaded):
        admit(survivor)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    clear_slot(path, 1)
    with admit(survivor, 5):
        pass
    survivor.close()


def test_the_estimate_learns_the_language() -> None:
    estimator = TokenEstimator()
    assert estimator.estimate(400, num_texts=1, max_input_tokens=512) == 101
    for _ in range(200):
        estimator.learn(100, 100)
    assert estimator.estimate(400, num_texts=1, max_input_tokens=512) == pytest.approx(401, abs=5)
    assert estimator.estimate(10**7, num_texts=2, max_input_tokens=512) == 1024


@pytest.mark.parametrize(("num_chars", "num_tokens", "limit"), [(10**7, 1, 16.0), (1, 10**5, 0.25)])
def test_no_text_teaches_a_ratio_that_text_cannot_have(num_chars: int, num_tokens: int, limit: float) -> None:
    estimator = TokenEstimator()
    for _ in range(500):
        estimator.learn(num_chars, num_tokens)
    assert estimator.chars_per_token == pytest.approx(limit)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**5)), max_size=30), st.integers(0, 10**6))
def test_the_estimate_stays_sane(calls: list[tuple[int, int]], num_chars: int) -> None:
    estimator = TokenEstimator()
    for chars, tokens in calls:
        estimator.learn(chars, tokens)
    assert 1 <= estimator.estimate(num_chars, num_texts=1, max_input_tokens=512) <= 512
