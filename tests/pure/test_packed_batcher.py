"""What goes into a step and what comes out of it, with a clock wound by hand."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.batch import ArraySpec, Output
from runtime.engine import EngineError, OutOfMemory
from server.engine.batchers import encoding
from server.engine.batchers.batcher import StepLimits, StepResult
from server.engine.batchers.encoding import MAX_LOOK_AHEAD, EncoderStep
from server.engine.batchers.job_queue import HORIZON_S
from server.engine.batchers.packed import PackedBatcher
from server.engine.cost_model import CostModel
from server.errors import DeadlineExceeded, EngineFailure, Unservable
from server.wire.job import Job, Ragged, Result
from server.wire.result_stream import ResultStream
from tests.pure.fake_requests import OUTPUT, OUTPUT_DIM, REDUCERS, Call, FakeEngineRun, make_job, make_sequence

LIMITS = StepLimits(max_batch_tokens=100, max_batch_requests=8, max_wait_s=0.0)
LAZY = StepLimits(max_batch_tokens=100, max_batch_requests=8, max_wait_s=0.5)

calls = st.lists(
    st.tuples(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.floats(0.0005, 0.1)), min_size=1, max_size=12
)


def rows(call: Call) -> list[tuple[int, int]]:
    return [(call.number, row) for row in range(len(call.seqlens))]


@given(calls, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_every_call_ends_once_within_the_budget(drawn: list[tuple[list[int], float]], rng: random.Random) -> None:
    """Done, expired or, where its client has gone, dropped: `FakeEngineRun` checks limits and double answers."""
    run = FakeEngineRun(LIMITS)
    everyone: list[Call] = []
    for seqlens, timeout_s in drawn:
        everyone.append(run.add(seqlens, timeout_s=timeout_s))
        if rng.random() < 0.3:
            run.cancel(rng.choice(everyone))
        if rng.random() < 0.5:
            run.step()
    run.drain()
    for call in everyone:
        is_done, is_late = len(call.done_s) == len(call.seqlens), isinstance(call.error, DeadlineExceeded)
        assert is_done + is_late + call.is_cancelled == 1, call


@given(calls)
@settings(deadline=None)
def test_no_step_is_empty_while_somebody_waits(drawn: list[tuple[list[int], float]]) -> None:
    run = FakeEngineRun(LIMITS)
    for seqlens, _ in drawn:
        run.add(seqlens, timeout_s=1e6)
    while run.batcher.queue.order:
        assert run.step()


def test_earliest_deadline_goes_first() -> None:
    run = FakeEngineRun(LIMITS)
    late, soon = run.add([60], timeout_s=20.0), run.add([60], timeout_s=5.0)
    assert run.step() == rows(soon)
    assert run.step() == rows(late)


def test_lower_priority_number_goes_before_any_deadline() -> None:
    run = FakeEngineRun(LIMITS)
    late, soon = run.add([60], timeout_s=1.0), run.add([60], priority=-1)
    assert run.step() == rows(soon)
    assert run.step() == rows(late)


def test_deadlines_are_kept_where_order_alone_can_keep_them() -> None:
    """40 calls with shuffled deadlines, all of which can be met in the one right order."""
    run = FakeEngineRun(LIMITS, CostModel(per_token_s=5e-3))
    order = list(range(40))
    random.Random(0).shuffle(order)
    added = [run.add([100], timeout_s=0.5 * (place + 1) - 0.005) for place in order]
    run.drain()
    assert not any(call.error for call in added)


def test_patient_call_runs_under_overload() -> None:
    """Its deadline is an hour away, and impatient ones keep coming faster than they can be run."""
    run = FakeEngineRun(LIMITS, CostModel(per_token_s=1e-2))
    patient = run.add([10], timeout_s=3600.0)
    while patient.ended_s is None and run.now_s < 3 * HORIZON_S:
        for _ in range(11):
            run.add([10], timeout_s=20.0)
        run.step()
    assert patient.done_s


def test_cancelled_calls_no_longer_count_and_take_no_room() -> None:
    run = FakeEngineRun(LIMITS)
    gone, here = run.add([90] * 3), run.add([90])
    run.cancel(gone)
    assert run.batcher.num_queued_tokens == 90
    assert run.step() == rows(here)
    run.drain()
    assert not gone.done_s


def test_call_cancelled_while_it_is_computed_hears_nothing() -> None:
    run = FakeEngineRun(LIMITS)
    gone, here = run.add([10]), run.add([20, 90])
    step = run.form()
    assert step is not None
    run.cancel(gone)
    run.batcher.settle(StepResult(step, 0.0, 1.0, run.engine.run(step.batch), None), 1.0)
    run.batcher.deliver()
    run.drain()
    assert not gone.done_s and len(here.done_s) == 2


def test_input_that_does_not_fit_is_passed_over_and_there_next_time() -> None:
    run = FakeEngineRun(LIMITS)
    call = run.add([60, 70, 10, 30, 20])
    assert sorted(run.step()) == [(call.number, row) for row in (0, 2, 3)]
    assert sorted(run.step()) == [(call.number, row) for row in (1, 4)]


def test_look_ahead_is_bounded() -> None:
    """A queue full of long inputs is not searched to its end for the one short enough."""
    run = FakeEngineRun(LIMITS)
    call = run.add([60] + [50] * MAX_LOOK_AHEAD + [1])
    assert run.step() == [(call.number, 0)]
    assert run.batcher.queue.num_items == MAX_LOOK_AHEAD + 1


def test_number_of_inputs_is_limited_too() -> None:
    run = FakeEngineRun(LIMITS)
    call = run.add([1] * 20)
    assert run.step() == rows(call)[:8]


def test_input_as_long_as_the_budget_runs_and_a_longer_one_is_never_queued() -> None:
    run = FakeEngineRun(LIMITS)
    full = run.add([100])
    assert run.step() == rows(full)
    with pytest.raises(EngineFailure, match="101 tokens"):
        run.add([1, 101])
    run.drain()


def test_expired_calls_are_told_once_and_never_run() -> None:
    run = FakeEngineRun(LIMITS)
    late, fine = run.add([50, 50], timeout_s=1.0), run.add([50], timeout_s=9.0)
    run.now_s = 1.0
    assert run.step() == rows(fine)
    assert isinstance(late.error, DeadlineExceeded) and late.ended_s == 1.0
    assert run.step() == []


@pytest.mark.parametrize("seed", range(3))
def test_nobody_starves_under_constant_overload(seed: int) -> None:
    """Twice the engine's rate, for as long as it takes: everybody is run or told before long, long inputs too."""
    run = FakeEngineRun(LIMITS, CostModel(per_token_s=1e-3))
    rng = random.Random(seed)
    added: list[Call] = []
    for _ in range(400):
        added += [run.add([rng.choice([5, 20, 95])], timeout_s=rng.choice([1.0, 2.0])) for _ in range(4)]
        run.step()
    longest_step_s = 0.1
    assert all(call.ended_s is not None for call in added if call.arrival_s < run.now_s - 3.0)
    assert all(call.ended_s - call.arrival_s <= 2.0 + longest_step_s for call in added if call.ended_s is not None)
    assert any(call.done_s for call in added if call.seqlens == [95])


def test_long_input_gets_its_turn_among_short_ones() -> None:
    """Short ones keep arriving and would always fill the budget; the long one, come first, is not pushed back."""
    run = FakeEngineRun(LIMITS)
    run.add([10] * 5)
    long = run.add([95])
    for _ in range(4):
        run.add([10] * 10)
        run.step()
    assert long.done_s


def test_large_call_leaves_room_for_singles() -> None:
    """2,048 inputs arrive at once, single ones all the time: these are in the next step, do not wait for the whole
    call; and the call does not wait for them either, but gets its half."""
    limits = StepLimits(max_batch_tokens=1024, max_batch_requests=64, max_wait_s=0.0)
    run = FakeEngineRun(limits, CostModel(per_token_s=1e-4))
    whole = run.add([32] * 2048)
    singles: list[Call] = []
    while whole.ended_s is None:
        singles += [run.add([32]) for _ in range(16)]  # half of a step's tokens
        run.step()
    step_s = 1024 * 1e-4
    alone_s = 2048 * 32 * 1e-4
    assert max(call.last_done_s - call.arrival_s for call in singles if call.done_s) < 3 * step_s
    assert sum(bool(call.done_s) for call in singles) > 0.9 * len(singles)
    assert whole.last_done_s < 2.2 * alone_s


def test_results_of_a_call_come_in_its_order_where_lengths_allow() -> None:
    run = FakeEngineRun(LIMITS)
    call = run.add([40] * 9)
    run.drain()
    assert [row for step in run.steps for row in step] == rows(call)


def run_short_of_memory(run: FakeEngineRun, most: int) -> None:
    """A step, and what is tried again of it, where there is memory for `most` tokens."""
    steps = [run.form()]
    while steps:
        step = steps.pop(0)
        assert step is not None
        is_over = step.cost.num_tokens > most
        output, error = (None, OutOfMemory("nothing left")) if is_over else (run.engine.run(step.batch), None)
        steps += run.batcher.settle(StepResult(step, 0.0, 1.0, output, error), 1.0)
        run.batcher.deliver()


def test_steps_stay_as_small_as_there_was_memory_for() -> None:
    run = FakeEngineRun(LIMITS)
    calls = [run.add([10] * 8)]
    run_short_of_memory(run, 25)
    calls.append(run.add([10] * 8))
    run.drain()
    assert [len(step) for step in run.steps] == [8, 2, 2, 2, 2]
    assert [len(call.done_s) for call in calls] == [8, 8]


def test_an_input_over_what_there_was_memory_for_is_still_tried() -> None:
    run = FakeEngineRun(LIMITS)
    run.add([10] * 8)
    run_short_of_memory(run, 25)
    long = run.add([90])
    run.drain()
    assert long.done_s and run.steps[-1] == rows(long)


class TestWait:
    """How long a free engine waits for a fuller batch."""

    def test_empty_queue_waits_for_something_to_change(self) -> None:
        assert FakeEngineRun(LIMITS).batcher.wait_s(0.0) is None

    def test_hungry_starts_at_once(self) -> None:
        run = FakeEngineRun(LIMITS)
        run.add([1])
        assert run.batcher.wait_s(0.0) == 0

    def test_lazy_waits_for_the_oldest_only_so_long(self) -> None:
        run = FakeEngineRun(LAZY)
        run.add([1], arrival_s=10.0)
        run.add([1], arrival_s=10.3)
        assert run.batcher.wait_s(10.3) == pytest.approx(0.2)
        assert run.batcher.wait_s(10.6) == 0

    @pytest.mark.parametrize("seqlens", [[100], [50, 50], [1] * 8])
    def test_full_batch_starts_at_once(self, seqlens: list[int]) -> None:
        run = FakeEngineRun(LAZY)
        run.add(seqlens)
        assert run.batcher.wait_s(0.0) == 0

    def test_urgent_deadline_shortens_the_wait(self) -> None:
        """To two predicted steps before it: time to run, and to be wrong by a factor of two."""
        run = FakeEngineRun(LAZY, CostModel(fixed_s=0.05))
        run.add([10], timeout_s=0.3)
        assert run.batcher.wait_s(0.0) == pytest.approx(0.3 - 2 * 0.05)

    @pytest.mark.parametrize("seqlens", [[60, 60], [1] * 9])
    def test_left_over_input_does_not_wait_all_over_again(self, seqlens: list[int]) -> None:
        run = FakeEngineRun(LAZY)
        run.add(seqlens)
        run.now_s = 0.4
        assert run.form() is not None
        assert run.batcher.queue.num_items == 1
        assert run.batcher.wait_s(0.4) == pytest.approx(0.1)

    def test_next_arrival_after_an_empty_queue_starts_the_wait_anew(self) -> None:
        run = FakeEngineRun(LAZY)
        run.add([1])
        run.form()
        run.add([1], arrival_s=3.0)
        assert run.batcher.wait_s(3.1) == pytest.approx(0.4)


class TestFailingSteps:
    """Halved until the culprit is alone."""

    def fail(self, run: FakeEngineRun, culprit: Call) -> list[int]:
        """Run a step, which fails wherever `culprit` is in it. Returns the sizes of those that failed."""
        step = run.form()
        assert step is not None
        steps, failed = [step], []
        while steps:
            step = steps.pop(0)
            is_bad = any(item.encoding.stream is culprit.stream for item in step.inputs)
            error = EngineError("the culprit") if is_bad else None
            output = None if is_bad else run.engine.run(step.batch)
            failed += [len(step.inputs)] if is_bad else []
            steps += run.batcher.settle(StepResult(step, run.now_s, run.now_s, output, error), run.now_s)
            run.batcher.deliver()
        return failed

    def test_others_of_its_batch_are_answered(self) -> None:
        run = FakeEngineRun(LIMITS)
        good = [run.add([length]) for length in (5, 3, 4)]
        culprit = run.add([1])
        good += [run.add([length]) for length in (3, 8, 6, 2)]
        assert self.fail(run, culprit) == [8, 4, 2, 1]
        assert isinstance(culprit.error, EngineFailure) and "the culprit" in str(culprit.error)
        assert all(call.done_s for call in good)
        run.drain()

    def test_all_of_its_call_fails_and_what_waits_of_it_is_dropped(self) -> None:
        run = FakeEngineRun(LIMITS)
        culprit = run.add([10] * 20)
        assert self.fail(run, culprit)[0] == 8
        assert culprit.error is not None
        assert run.step() == []
        run.drain()

    def test_who_is_cancelled_or_late_is_not_tried_again(self) -> None:
        run = FakeEngineRun(LIMITS)
        late, gone, here = run.add([10], timeout_s=1.0), run.add([11]), run.add([12])
        step = run.form()
        assert step is not None
        run.cancel(gone)
        (again,) = run.batcher.settle(StepResult(step, 0.0, 2.0, None, EngineError("no")), 2.0)
        assert [item.encoding.stream for item in again.inputs] == [here.stream]
        assert isinstance(late.error, DeadlineExceeded)

    def test_engine_that_gives_no_reason_is_told_of_all_the_same(self) -> None:
        run = FakeEngineRun(LIMITS)
        alone = run.add([10])
        step = run.form()
        assert step is not None
        assert run.batcher.settle(StepResult(step, 0.0, 1.0, None, None), 1.0) == []
        assert isinstance(alone.error, EngineFailure)


def settle_by_hand(outputs: list[ArraySpec], output: Output, seqlens: list[int]) -> list[Result]:
    """The results of one job whose step computes `output`."""
    batcher = PackedBatcher(LIMITS, CostModel(), outputs, {"embed": lambda arrays, job, rows: arrays})
    stream, found = ResultStream(lambda rows: None), list[Result]()
    stream.listen(found.append, lambda error: pytest.fail(str(error)))
    batcher.add(make_job([make_sequence(seqlen) for seqlen in seqlens]), stream, now_s=1.0)
    step = batcher.form(1.0)
    assert step is not None
    batcher.settle(StepResult(step, 1.5, 1.75, output, None), 2.0)
    while batcher.deliver():
        pass
    return found


def test_rows_of_tokens_are_cut_at_the_borders_of_inputs() -> None:
    """Each input's own, in the order of the job, though the batch is sorted by length."""
    specs = [ArraySpec("labels", "float32", ("num_tokens", 2)), OUTPUT]
    labels = np.arange(12, dtype=np.float32).reshape(6, 2)
    pooled = np.arange(12, dtype=np.float32).reshape(3, 4)
    (result,) = settle_by_hand(specs, Output({"labels": labels, "embeddings": pooled}), [3, 1, 2])
    by_row = dict(zip(result.rows.tolist(), range(3), strict=True))
    found = [result.arrays["labels"].row(by_row[row]).tolist() for row in range(3)]
    assert found == [labels[3:].tolist(), labels[:1].tolist(), labels[1:3].tolist()]
    assert [result.arrays["embeddings"].row(by_row[row])[0].tolist() for row in range(3)] == [
        pooled[2].tolist(),
        pooled[0].tolist(),
        pooled[1].tolist(),
    ]


class TestLargeSteps:
    """A turn hands out 8 numbers here, which are the rows of two inputs."""

    @pytest.fixture
    def run(self, monkeypatch: pytest.MonkeyPatch) -> FakeEngineRun:
        monkeypatch.setattr(encoding, "TURN_NUMBERS", 2 * OUTPUT_DIM)
        return FakeEngineRun(LIMITS)

    def compute(self, run: FakeEngineRun) -> None:
        step = run.form()
        assert step is not None
        run.batcher.settle(StepResult(step, 0.0, 1.0, run.engine.run(step.batch), None), 1.0)

    def test_are_handed_out_in_turns_before_anything_else_is_computed(self, run: FakeEngineRun) -> None:
        large, small, later = run.add([3] * 5), run.add([9]), run.add([90])
        self.compute(run)
        told = []
        while run.batcher.computed:
            assert run.batcher.wait_s(1.0) is None and later.ended_s is None
            assert run.batcher.deliver() == bool(run.batcher.computed)
            told.append((len(large.done_s), len(small.done_s)))
        assert told == [(2, 0), (4, 0), (5, 1)]
        assert run.batcher.wait_s(1.0) == 0.0
        run.drain()

    def test_who_leaves_meanwhile_hears_nothing_more(self, run: FakeEngineRun) -> None:
        gone, here = run.add([3] * 5), run.add([9])
        self.compute(run)
        run.batcher.deliver()
        run.cancel(gone)
        assert not run.batcher.deliver()
        assert len(gone.done_s) == 2 and len(here.done_s) == 1
        run.drain()

    def test_a_reducer_that_fails_ends_its_own_job(self, run: FakeEngineRun) -> None:
        bad, good = run.add([3] * 5), run.add([9])
        run.batcher.reducers = {"embed": fail_for_many}
        self.compute(run)
        while run.batcher.deliver():
            pass
        assert isinstance(bad.error, EngineFailure) and "too many" in str(bad.error)
        assert good.error is None and len(good.done_s) == 1

    def test_an_input_of_many_rows_is_a_part(self, run: FakeEngineRun) -> None:
        spec = ArraySpec("labels", "float32", ("num_tokens", 2))
        found = settle_by_hand([spec], Output({"labels": np.zeros((12, 2), np.float32)}), [9, 1, 2])
        assert [result.rows.tolist() for result in found] == [[1, 2], [0]]
        assert [result.is_last for result in found] == [False, True]


def fail_for_many(arrays: dict[str, Ragged], job: Job, rows: Sequence[int]) -> dict[str, Ragged]:
    if job.num_inputs > 1:
        raise ValueError("too many")
    return arrays


def test_result_says_how_long_it_waited_and_was_computed() -> None:
    (result,) = settle_by_hand([OUTPUT], Output({"embeddings": np.zeros((1, 4), np.float32)}), [3])
    assert (result.queue_s, result.engine_s, result.is_last) == (0.5, 0.25, True)


def test_canary_is_nobodys_and_the_books_are_in_order_when_idle() -> None:
    batcher = PackedBatcher(LIMITS, CostModel(), [OUTPUT], REDUCERS)
    canary: EncoderStep = batcher.form_canary()
    assert canary.is_canary and canary.inputs == [] and canary.batch.num_tokens == 1
    batcher.check_books()


def test_only_what_jobs_read_is_wanted_of_the_graph() -> None:
    """And each gets it by its own name for it. A job that says nothing reads everything."""
    specs = [OUTPUT, ArraySpec("mood.logits", "float32", ("num_seqs", 2))]
    batcher = PackedBatcher(LIMITS, CostModel(), specs, {"embed": lambda arrays, job, rows: arrays})
    found: dict[str, list[Result]] = {}
    for name, outputs in (("one", {"embeddings": "embeddings"}), ("two", {"logits": "mood.logits"})):
        stream = ResultStream(lambda rows: None)
        stream.listen(found.setdefault(name, []).append, lambda error: pytest.fail(str(error)))
        batcher.add(replace(make_job([make_sequence(3)]), outputs=outputs), stream, now_s=1.0)
        step = batcher.pack_step(batcher.choose())
        assert step.batch.outputs == set(outputs.values())
        computed = Output({spec.name: np.ones((1, int(spec.dims[1])), np.float32) for spec in specs})
        batcher.settle(StepResult(step, 1.5, 1.75, computed, None), 2.0)
        batcher.deliver()
    assert [list(result.arrays) for results in found.values() for result in results] == [["embeddings"], ["logits"]]
    stream = ResultStream(lambda rows: None)
    batcher.add(make_job([make_sequence(3)]), stream, now_s=1.0)
    assert batcher.pack_step(batcher.choose()).batch.outputs is None
    with pytest.raises(Unservable, match="does not compute nothing"):
        batcher.add(replace(make_job([make_sequence(3)]), outputs={"x": "nothing"}), stream, now_s=1.0)
