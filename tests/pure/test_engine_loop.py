"""One engine kept busy: who is answered, in which order, and what becomes of those who fail, leave or come too late."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from runtime.batch import Batch, Output
from runtime.engine import DeviceLost, OutOfMemory
from server.engine import engine_loop, executor
from server.engine.batchers import encoding
from server.engine.batchers.packed import PackedBatcher
from server.engine.cost_model import CostModel
from server.errors import DeadlineExceeded, EngineFailure, EngineUnavailable
from server.wire.job import TokenSequence
from tests.pure.fake_requests import make_job, make_sequence
from tests.pure.gated_engine import (
    PATIENCE_S,
    POISON,
    GatedEngine,
    PackedLoop,
    expected_rows,
    make_batcher,
    make_loop,
    read_rows,
    until,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine() -> GatedEngine:
    return GatedEngine()


@pytest.fixture
async def loop(engine: GatedEngine) -> AsyncIterator[PackedLoop]:
    """Started, the first canary answered."""
    loop = make_loop(engine)
    await loop.start()
    await until(lambda: loop.statuses()[0].is_ready)
    yield loop
    engine.open_gate()
    await loop.close()


Rows = list[list[float]]


def encodings(loop: PackedLoop) -> dict[Any, Any]:
    """Its jobs that are not answered."""
    assert isinstance(loop.batcher, PackedBatcher)
    return loop.batcher.encodings


def count_queued(loop: PackedLoop) -> int:
    assert isinstance(loop.batcher, PackedBatcher)
    return loop.batcher.queue.num_items


def call(loop: PackedLoop, *sequences: TokenSequence, timeout_s: float = PATIENCE_S) -> asyncio.Task[Rows]:
    """Under way; a job that nobody answers fails the test instead of hanging it."""

    async def run() -> Rows:
        return await read_rows(loop.submit(make_job(list(sequences), timeout_s=timeout_s)))

    return asyncio.create_task(run())


async def occupy(loop: PackedLoop, engine: GatedEngine) -> list[asyncio.Task[Rows]]:
    """Close the gate with one step running and one behind it: what comes now waits in the queue."""
    engine.close_gate()
    tasks = []
    for num_steps in (1, 2):
        tasks.append(call(loop, make_sequence(1, 1000 + num_steps)))
        await until(lambda num_steps=num_steps: len(loop.under_way) == num_steps)
    return tasks


async def test_answers_are_in_the_order_of_the_call(loop: PackedLoop) -> None:
    """Though steps are sorted by length, and the call is cut over several."""
    sequences = [make_sequence(length, length * 7) for length in (30, 2, 90, 30, 1, 60, 2, 45)]
    answer = await call(loop, *sequences)
    assert answer == expected_rows(sequences)


async def test_calls_in_one_batch_get_their_own_answers(loop: PackedLoop, engine: GatedEngine) -> None:
    busy = await occupy(loop, engine)
    sequences = [make_sequence(length, length * 10) for length in (5, 3, 4, 3)]
    tasks = [call(loop, sequence) for sequence in sequences]
    await until(lambda: count_queued(loop) == 4)
    engine.open_gate()
    answers = await asyncio.gather(*tasks)
    assert max(len(batch) for batch in engine.batches) == 4
    assert [answer[0] for answer in answers] == expected_rows(sequences)
    await asyncio.gather(*busy)


async def test_one_step_runs_and_one_is_ready_behind_it_and_no_more(loop: PackedLoop, engine: GatedEngine) -> None:
    busy = await occupy(loop, engine)
    tasks = [call(loop, make_sequence(90)) for _ in range(5)]
    await until(lambda: count_queued(loop) == 5)
    for left in range(5, 0, -1):
        for _ in range(20):  # time enough for a third step, were there one
            await asyncio.sleep(0)
        assert len(loop.under_way) == 2
        assert count_queued(loop) == left
        engine.permits.release()
        await until(lambda left=left: count_queued(loop) == left - 1)
    engine.open_gate()
    await asyncio.gather(*busy, *tasks)


async def test_newcomer_ends_what_would_go_on_by_itself(loop: PackedLoop, engine: GatedEngine) -> None:
    device = loop.executor
    assert isinstance(device, executor.DeviceThread)
    busy = await occupy(loop, engine)
    assert not device.is_interrupted, "What waited is on its way."
    newcomer = call(loop, make_sequence(1))
    await until(lambda: count_queued(loop) == 1)
    assert device.is_interrupted
    engine.open_gate()
    await asyncio.gather(newcomer, *busy)
    assert not device.is_interrupted
    loop.submit(make_job([make_sequence(1)])).cancel()
    device.is_interrupted = False
    stream = loop.submit(make_job([make_sequence(1)]))
    device.is_interrupted = False
    stream.cancel()
    assert device.is_interrupted, "There may be room for others."


async def test_deadline_that_passes_in_the_queue_is_told(loop: PackedLoop, engine: GatedEngine) -> None:
    busy = await occupy(loop, engine)
    late, fine = call(loop, make_sequence(2, 50), make_sequence(3, 50), timeout_s=0.0), call(loop, make_sequence(2))
    await until(lambda: count_queued(loop) == 3)
    engine.open_gate()
    with pytest.raises(DeadlineExceeded):
        await late
    await asyncio.gather(fine, *busy)
    assert not any(ids[0] == 50 for batch in engine.batches for ids in batch)
    assert not encodings(loop)


async def test_cancelled_call_frees_its_place(loop: PackedLoop, engine: GatedEngine) -> None:
    busy = await occupy(loop, engine)
    gone, here = call(loop, make_sequence(90, 500)), call(loop, make_sequence(90, 700))
    await until(lambda: count_queued(loop) == 2)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    engine.open_gate()
    await asyncio.gather(here, *busy)
    assert not any(ids[0] == 500 for batch in engine.batches for ids in batch)
    assert loop.batcher.num_queued_tokens == 0
    assert not encodings(loop)


async def test_call_cancelled_while_it_runs_is_forgotten(loop: PackedLoop, engine: GatedEngine) -> None:
    busy = await occupy(loop, engine)
    busy[0].cancel()
    engine.open_gate()
    await busy[1]
    assert not encodings(loop)


async def test_failing_step_is_halved_until_the_culprit_is_alone(loop: PackedLoop, engine: GatedEngine) -> None:
    busy = await occupy(loop, engine)
    sequences = [make_sequence(length, length * 10) for length in (5, 3, 4, 3, 8, 6, 2)]
    tasks = [call(loop, sequence) for sequence in sequences]
    culprit = call(loop, make_sequence(1, POISON))
    await until(lambda: count_queued(loop) == 8)
    num_before = len(engine.batches)
    engine.open_gate()
    with pytest.raises(EngineFailure, match=str(POISON)):
        await culprit
    answers = await asyncio.gather(*tasks)
    assert [answer[0] for answer in answers] == expected_rows(sequences)
    await asyncio.gather(*busy)
    steps = engine.batches[num_before:]
    failed = [len(batch) for batch in steps if [POISON] in batch]
    assert failed == [8, 4, 2, 1]
    assert loop.statuses()[0].is_ready


async def test_one_bad_input_fails_its_call_and_no_other(loop: PackedLoop) -> None:
    bad = call(loop, make_sequence(3), make_sequence(1, POISON), make_sequence(4))
    good = call(loop, make_sequence(5))
    with pytest.raises(EngineFailure):
        await bad
    assert await good == expected_rows([make_sequence(5)])
    assert not encodings(loop)


async def test_error_nobody_foresaw_fails_the_call_and_not_the_loop(loop: PackedLoop, engine: GatedEngine) -> None:
    engine.error = ZeroDivisionError("of course")
    with pytest.raises(EngineFailure, match="of course"):
        await call(loop, make_sequence(3))
    engine.error = None
    await call(loop, make_sequence(3))


async def test_input_over_the_budget_is_refused(loop: PackedLoop) -> None:
    with pytest.raises(EngineFailure, match="101 tokens"):
        await call(loop, make_sequence(101))
    await call(loop, make_sequence(100))


async def test_lazy_loop_starts_a_full_batch_at_once(engine: GatedEngine) -> None:
    """It would wait far longer than this test has patience for."""
    loop = make_loop(engine, make_batcher(max_wait_s=10 * PATIENCE_S))
    await loop.start()
    first = call(loop, make_sequence(50))
    await until(lambda: count_queued(loop) == 1)
    second = call(loop, make_sequence(50), timeout_s=100 * PATIENCE_S)
    await asyncio.wait_for(asyncio.gather(first, second), PATIENCE_S)
    await loop.close()


async def test_close_fails_who_still_waits(engine: GatedEngine) -> None:
    loop = make_loop(engine)
    await loop.start()
    await until(lambda: loop.statuses()[0].is_ready)
    tasks = [*await occupy(loop, engine), call(loop, make_sequence(90))]
    await until(lambda: count_queued(loop) == 1)
    closing = asyncio.create_task(loop.close())
    await asyncio.sleep(0)
    engine.open_gate()
    await closing
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[2], EngineUnavailable)
    assert all(isinstance(result, list | EngineUnavailable) for result in results)
    assert engine.is_closed
    assert isinstance(loop.executor, executor.DeviceThread) and loop.executor.thread is not None
    assert not loop.executor.thread.is_alive()


class Clock:
    """Mutable: the time, wound by a test. Starts shortly after the machine did."""

    now_s = 1.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(engine_loop, "monotonic", clock)
    monkeypatch.setattr(executor, "monotonic", clock)
    monkeypatch.setattr(engine_loop, "OBSERVE_PERIOD_S", 0.001)
    return clock


async def let_pass(clock: Clock, seconds: float) -> None:
    """In the loop's sight: what passes between two looks of it, it takes for its own sleep."""
    until_s = clock.now_s + seconds
    while clock.now_s < until_s:
        clock.now_s = min(clock.now_s + 0.9 * engine_loop.PAUSE_S, until_s)
        await asyncio.sleep(1.5 * engine_loop.WATCH_PERIOD_S)


async def test_loop_is_not_ready_before_its_first_success(engine: GatedEngine, clock: Clock) -> None:
    engine.close_gate()
    loop = make_loop(engine, canary_interval_s=5.0)
    await loop.start()
    status = loop.statuses()[0]
    assert (status.is_ready, status.reason) == (False, "starting")
    engine.open_gate()
    await until(lambda: loop.statuses()[0].is_ready)
    await loop.close()


async def test_canary_keeps_an_idle_loop_ready(engine: GatedEngine, clock: Clock) -> None:
    loop = make_loop(engine, canary_interval_s=5.0)
    await loop.start()
    for num_canaries in range(1, 6):
        await until(lambda num_canaries=num_canaries: len(engine.batches) == num_canaries)
        await until(lambda: not loop.under_way)
        assert loop.statuses()[0].is_ready
        clock.now_s += 5.0
    assert engine.num_trims >= 4
    await loop.close()


@pytest.mark.parametrize("failure", ["raises", "nan"])
async def test_engine_that_fails_a_canary_is_not_ready_until_one_succeeds(
    engine: GatedEngine, clock: Clock, failure: str
) -> None:
    loop = make_loop(engine, canary_interval_s=5.0)
    await loop.start()
    await until(lambda: loop.statuses()[0].is_ready)
    if failure == "raises":
        engine.error = RuntimeError("broken")
    else:
        engine.makes_nan = True
    clock.now_s += 4.9
    assert loop.statuses()[0].is_ready
    clock.now_s += 0.2
    await until(lambda: not loop.statuses()[0].is_ready)
    assert loop.statuses()[0].reason == "the last 1 canaries have failed"
    engine.error, engine.makes_nan = None, False
    clock.now_s += 0.5
    await until(lambda: loop.statuses()[0].is_ready)
    await loop.close()


async def test_engine_that_goes_on_failing_is_given_up(engine: GatedEngine, clock: Clock) -> None:
    """Three canaries in a row: the loop says so, which ends the process, and tells whoever calls."""
    loop = make_loop(engine, canary_interval_s=5.0)
    await loop.start()
    await until(lambda: loop.statuses()[0].is_ready)
    engine.error = RuntimeError("broken")
    for _ in range(3):
        num_before = len(engine.batches)
        clock.now_s += 5.1
        await until(lambda num_before=num_before: len(engine.batches) > num_before)
    await until(loop.crashed.is_set)
    assert not loop.statuses()[0].is_ready
    with pytest.raises(EngineUnavailable, match="canaries in a row have failed"):
        loop.submit(make_job([make_sequence(3)]))
    await loop.close()


async def test_engine_whose_device_is_lost_is_given_up_at_once(loop: PackedLoop, engine: GatedEngine) -> None:
    """Nothing is tried again: each further step would fail, too."""
    busy = await occupy(loop, engine)
    queued = call(loop, make_sequence(3))
    await until(lambda: count_queued(loop) == 1)
    engine.error = DeviceLost("CUDA error: an illegal memory access was encountered")
    engine.open_gate()
    for task in (*busy, queued):
        with pytest.raises(EngineUnavailable, match="illegal memory access"):
            await task
    assert loop.crashed.is_set() and not loop.statuses()[0].is_ready
    with pytest.raises(EngineUnavailable, match="illegal memory access"):
        loop.submit(make_job([make_sequence(3)]))


async def test_engine_without_memory_for_a_step_lives_on_with_smaller_ones(
    loop: PackedLoop, engine: GatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[int] = []
    run = engine.run

    def run_small(batch: Batch) -> Output:
        if batch.num_tokens > 30:
            failed.append(batch.num_tokens)
            raise OutOfMemory("nothing left")
        return run(batch)

    monkeypatch.setattr(engine, "run", run_small)
    for _ in range(2):
        sequences = [make_sequence(20, 1 + number) for number in range(16)]
        assert await call(loop, *sequences) == expected_rows(sequences)
    assert failed.count(100) <= 2, "as many steps as had been formed already"
    assert loop.statuses()[0].is_ready and not loop.crashed.is_set()


async def test_large_steps_are_handed_out_in_turns(loop: PackedLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which others get between; and the next step is formed when all is handed out, though nobody wakes the loop."""
    monkeypatch.setattr(encoding, "TURN_NUMBERS", 1)
    turns: list[int] = []
    deliver = loop.batcher.deliver

    def count_and_deliver() -> bool:
        assert isinstance(loop.batcher, PackedBatcher)
        asyncio.get_running_loop().call_soon(turns.append, len(loop.batcher.computed))
        return deliver()

    monkeypatch.setattr(loop.batcher, "deliver", count_and_deliver)
    sequences = [make_sequence(10, 1 + number) for number in range(30)]
    assert await call(loop, *sequences) == expected_rows(sequences)
    assert max(turns) > 2 and set(range(max(turns))) <= set(turns)


async def test_words_of_a_bug_stay_in_the_log(
    engine: GatedEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop = make_loop(engine)
    await loop.start()
    await until(lambda: loop.statuses()[0].is_ready)

    def break_down(now_s: float) -> None:
        raise ValueError("somebody's text")

    monkeypatch.setattr(loop.batcher, "form", break_down)
    stream = loop.submit(make_job([make_sequence(3)]))
    with pytest.raises(EngineUnavailable, match="the log says why") as told:
        await anext(stream)
    assert "somebody" not in str(told.value) + loop.statuses()[0].reason
    assert "somebody's text" in caplog.text
    await loop.close()


async def stop_in_a_step(engine: GatedEngine) -> tuple[PackedLoop, "asyncio.Task[Rows]"]:
    """A loop whose step should take half a second and does not end, and who waits for it."""
    loop = make_loop(engine, make_batcher(cost_model=CostModel(fixed_s=0.5)), canary_interval_s=5.0)
    await loop.start()
    await until(lambda: loop.statuses()[0].is_ready)
    engine.close_gate()
    waiting = call(loop, make_sequence(5))
    await until(lambda: loop.under_way)
    return loop, waiting


async def test_engine_that_hangs_is_given_up_and_who_waits_is_told(engine: GatedEngine, clock: Clock) -> None:
    """Judged by what its step should take, so that six are too many and four are not."""
    loop, waiting = await stop_in_a_step(engine)
    await let_pass(clock, 4.0)
    assert loop.statuses()[0].is_ready, "a step that takes long is no outage"
    assert not loop.crashed.is_set()
    await let_pass(clock, 2.0)
    assert not loop.statuses()[0].is_ready
    with pytest.raises(EngineUnavailable, match="the engine hangs"):
        await waiting
    assert loop.crashed.is_set()
    engine.open_gate()
    await loop.close()


async def test_a_process_that_stood_still_takes_its_own_pause_for_no_hang(engine: GatedEngine, clock: Clock) -> None:
    loop, waiting = await stop_in_a_step(engine)
    loop_time_s, clock.now_s = clock.now_s, clock.now_s + 60.0
    await asyncio.sleep(2 * engine_loop.WATCH_PERIOD_S)
    assert not loop.crashed.is_set()
    assert loop.oldest_since_s >= loop_time_s + 60.0
    engine.open_gate()
    assert len(await waiting) == 1
    await loop.close()


async def test_no_canary_is_sent_behind_one_that_waits(engine: GatedEngine, clock: Clock) -> None:
    """Else many would fail at once in the end, and an engine be given up for one moment's failure."""
    loop = make_loop(engine, make_batcher(cost_model=CostModel(fixed_s=60.0)), canary_interval_s=5.0)
    await loop.start()
    await until(lambda: loop.statuses()[0].is_ready)
    engine.error = RuntimeError("broken")
    clock.now_s += 5.1
    await until(lambda: loop.health.num_failed_canaries == 1)
    engine.error = None
    engine.close_gate()
    await let_pass(clock, 5.0)
    assert [step.is_canary for step in loop.under_way] == [True]
    engine.open_gate()
    await until(lambda: loop.statuses()[0].is_ready)
    await loop.close()


async def test_long_step_keeps_the_loop_ready_and_is_followed_by_no_canary(engine: GatedEngine, clock: Clock) -> None:
    loop = make_loop(engine, make_batcher(cost_model=CostModel(fixed_s=60.0)), canary_interval_s=5.0)
    await loop.start()
    await until(lambda: loop.statuses()[0].is_ready)
    engine.close_gate()
    waiting = call(loop, make_sequence(5))
    await until(lambda: loop.under_way)
    for _ in range(12):
        clock.now_s += 5.0
        await asyncio.sleep(0.01)
        assert loop.statuses()[0].is_ready
    assert len(loop.under_way) == 1
    engine.open_gate()
    await waiting
    await loop.close()


async def test_clients_failures_call_for_a_canary_which_clears_the_engine(engine: GatedEngine, clock: Clock) -> None:
    loop = make_loop(engine, canary_interval_s=1000.0)
    await loop.start()
    await until(lambda: loop.statuses()[0].is_ready)
    for _ in range(3):
        with pytest.raises(EngineFailure):
            await call(loop, make_sequence(1, POISON))
        assert loop.statuses()[0].is_ready
    num_canaries = engine.batches.count([[0]])
    clock.now_s += 1.0
    await until(lambda: engine.batches.count([[0]]) == num_canaries + 1)
    await until(lambda: not loop.under_way)
    assert loop.statuses()[0].is_ready
    assert loop.health.num_failed_steps == 0
    await loop.close()


async def test_busy_loop_runs_no_canaries(loop: PackedLoop, engine: GatedEngine, monkeypatch: Any) -> None:
    num_canaries = sum(batch == [[0]] for batch in engine.batches)
    for _ in range(20):
        await call(loop, make_sequence(3))
    assert sum(batch == [[0]] for batch in engine.batches) == num_canaries == 1
