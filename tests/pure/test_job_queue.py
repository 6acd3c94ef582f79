"""Deadline order, stable places, books that add up, and steps that are shared out fairly."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.batchers.batcher import StepLimits
from server.engine.batchers.job_queue import HORIZON_S, JobQueue, Waiting
from server.engine.cost_model import CostModel
from tests.pure.fake_requests import FakeEngineRun


@dataclass(frozen=True, slots=True)
class Input:
    num_tokens: int


Queue = JobQueue[Input]


def enter(
    queue: Queue, seqlens: list[int], *, priority: int = 0, deadline_s: float = 30.0, arrival_s: float = 0.0
) -> Waiting[Input]:
    waiting = queue.enter(priority=priority, deadline_s=deadline_s, arrival_s=arrival_s)
    for index, seqlen in enumerate(seqlens):
        queue.push(waiting, index, Input(seqlen))
    return waiting


def form(queue: Queue, num_tokens: int, num_items: int) -> list[tuple[Waiting[Input], int]]:
    """Takes whatever fits, in the order it is shared out."""
    chosen: list[tuple[Waiting[Input], int]] = []
    for waiting, index, item in queue.share_out(num_tokens, num_items):
        if num_items and item.num_tokens <= num_tokens:
            queue.take(waiting, index)
            num_tokens, num_items = num_tokens - item.num_tokens, num_items - 1
            chosen.append((waiting, index))
    return chosen


@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(0, 20)), min_size=1, max_size=40))
@settings(deadline=None)
def test_lowest_priority_then_earliest_deadline_and_first_come_among_equals(asked: list[tuple[int, int]]) -> None:
    queue = Queue()
    jobs = [enter(queue, [1], priority=priority, deadline_s=deadline_s) for priority, deadline_s in asked]
    assert queue.order == sorted(jobs, key=lambda job: (job.priority, job.deadline_s))


def test_far_deadline_counts_as_the_horizon() -> None:
    queue = Queue()
    patient = enter(queue, [1], deadline_s=3600.0)
    later = enter(queue, [1], arrival_s=1.0, deadline_s=1.0 + HORIZON_S)
    assert queue.order == [patient, later]


def test_tokens_and_inputs_are_counted_in_and_out() -> None:
    queue = Queue()
    first, second = enter(queue, [3, 4]), enter(queue, [5])
    assert (queue.num_tokens, queue.num_items) == (12, 3)
    queue.take(first, 1)
    assert (queue.num_tokens, queue.num_items) == (8, 2)
    queue.drop(first)
    queue.drop(second)
    assert (queue.num_tokens, queue.num_items, queue.order) == (0, 0, [])


def test_input_that_comes_back_has_its_old_place() -> None:
    """Its job's among others, and its own in its job: else who had to give way would be last in line each time."""
    queue = Queue()
    first, second = enter(queue, [1, 2, 3]), enter(queue, [4])
    back = queue.take(first, 0)
    queue.drop(second)
    queue.push(second, 0, Input(4))
    queue.push(first, 0, back)
    assert queue.order == [first, second]
    assert form(queue, 100, 100) == [(first, 0), (first, 1), (first, 2), (second, 0)]


jobs = st.lists(
    st.tuples(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.floats(0.1, 60)), min_size=1, max_size=12
)


@given(jobs, st.integers(100, 300), st.integers(1, 20))
@settings(deadline=None)
def test_everything_comes_out_once_within_the_budget(
    drawn: list[tuple[list[int], float]], num_tokens: int, num_items: int
) -> None:
    queue = Queue()
    waiting = [enter(queue, lengths, deadline_s=deadline_s) for lengths, deadline_s in drawn]
    seqlens = {id(job): [item.num_tokens for item in job.items.values()] for job in waiting}
    wanted = {(id(job), index) for job in waiting for index in job.items}
    while queue.order:
        chosen = form(queue, num_tokens, num_items)
        assert chosen, "No step is empty while somebody waits."
        assert sum(seqlens[id(job)][index] for job, index in chosen) <= num_tokens
        assert len(chosen) <= num_items
        for job, index in chosen:
            wanted.remove((id(job), index))
    assert not wanted
    assert (queue.num_tokens, queue.num_items) == (0, 0)


@given(jobs, st.integers(100, 1000), st.integers(12, 60))
@settings(deadline=None)
def test_job_no_larger_than_its_part_is_in_the_next_step(
    drawn: list[tuple[list[int], float]], num_tokens: int, num_items: int
) -> None:
    """Whatever comes before it; in the step after that, where the first job is owed a turn."""
    queue = Queue()
    small = [
        job
        for job, (seqlens, _) in [(enter(queue, seqlens, deadline_s=by_s), (seqlens, by_s)) for seqlens, by_s in drawn]
        if sum(seqlens) <= num_tokens // len(drawn) and len(seqlens) <= num_items // len(drawn)
    ]
    form(queue, num_tokens, num_items)
    assert not any(job.items for job in small)


def test_first_job_gets_every_second_turn_however_large_its_inputs() -> None:
    """Small ones keep coming that fill the step."""
    queue = Queue()
    large = enter(queue, [100] * 4)
    for number in range(8):
        for _ in range(2):
            enter(queue, [30], arrival_s=number + 1.0)
        form(queue, 100, 100)
    assert not large.items


@pytest.mark.parametrize(
    ("limits", "seqlen"),
    [
        (StepLimits(4096, 512, 0.0), 32),
        (StepLimits(4096, 64, 0.0), 3),
        (StepLimits(4096, 512, 0.0), 512),
        (StepLimits(4096, 512, 0.0), 4096),
    ],
    ids=["tokens run out", "inputs run out", "long inputs", "inputs as large as a step"],
)
def test_short_text_behind_a_call_of_2048_waits_two_steps_at_most(limits: StepLimits, seqlen: int) -> None:
    """Of which one may be under way when it comes: it is in the next one formed, or, where an input fills a step, in
    every second."""
    run = FakeEngineRun(limits, CostModel(per_token_s=5e-5))
    whole = run.add([seqlen] * 2048)
    for _ in range(10):
        run.form()  # under way, as far as the batcher knows
        single = run.add([10], timeout_s=60.0)
        before = len(run.steps)
        while (single.number, 0) not in run.steps[-1]:
            run.step()
        assert len(run.steps) - before <= (2 if seqlen == 4096 else 1)
    assert whole.ended_s is None


def test_short_texts_behind_several_large_calls_wait_two_steps_at_most() -> None:
    run = FakeEngineRun(StepLimits(4096, 512, 0.0), CostModel(per_token_s=5e-5))
    for seqlen in (512, 40, 300, 512, 12, 512, 512, 512, 512, 512, 512, 512):
        run.add([seqlen] * 500)
    for _ in range(10):
        singles = [run.add([10], timeout_s=60.0) for _ in range(3)]
        run.step()
        run.step()
        assert all(single.ended_s is not None for single in singles)
