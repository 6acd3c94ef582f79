"""One engine kept busy: who is answered, in which order, and what becomes of those who fail, leave or come too late."""

import asyncio
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import numpy as np
import pytest

from server.engine import engine_loop, executor
from server.engine.engine_loop import EngineLoop
from server.wire.job import Answer, DeadlineExceeded, EngineFailure, EngineUnavailable, TokenSequence
from tests.pure.fake_requests import make_sequence
from tests.pure.gated_engine import PATIENCE_S, POISON, GatedEngine, expected_rows, make_loop, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine() -> GatedEngine:
    return GatedEngine()


@pytest.fixture
async def loop(engine: GatedEngine) -> AsyncIterator[EngineLoop]:
    """Started, the first canary answered."""
    loop = make_loop(engine)
    await loop.start()
    await until(lambda: loop.status()[0].is_ready)
    yield loop
    engine.open_gate()
    await loop.close()


def call(loop: EngineLoop, *sequences: TokenSequence, timeout_s: float = PATIENCE_S) -> asyncio.Task[Answer]:
    """Under way; a call that nobody answers fails the test instead of hanging it."""
    return asyncio.create_task(asyncio.wait_for(loop.run(list(sequences), monotonic() + timeout_s), PATIENCE_S))


async def occupy(loop: EngineLoop, engine: GatedEngine) -> list[asyncio.Task[Answer]]:
    """Close the gate with one step running and one behind it: what comes now waits in the queue."""
    engine.close_gate()
    tasks = []
    for num_steps in (1, 2):
        tasks.append(call(loop, make_sequence(1, 1000 + num_steps)))
        await until(lambda num_steps=num_steps: len(loop.running.steps) == num_steps)
    return tasks


async def test_answers_are_in_the_order_of_the_call(loop: EngineLoop) -> None:
    """Though steps are sorted by length, and the call is cut over several."""
    sequences = [make_sequence(length, length * 7) for length in (30, 2, 90, 30, 1, 60, 2, 45)]
    answer = await call(loop, *sequences)
    assert answer.values.tolist() == expected_rows(sequences)
    assert answer.values.dtype == np.float32


async def test_calls_in_one_batch_get_their_own_answers(loop: EngineLoop, engine: GatedEngine) -> None:
    busy = await occupy(loop, engine)
    sequences = [make_sequence(length, length * 10) for length in (5, 3, 4, 3)]
    tasks = [call(loop, sequence) for sequence in sequences]
    await until(lambda: len(loop.scheduler.queue) == 4)
    engine.open_gate()
    answers = await asyncio.gather(*tasks)
    assert max(len(batch) for batch in engine.batches) == 4
    assert [answer.values[0].tolist() for answer in answers] == expected_rows(sequences)
    await asyncio.gather(*busy)


async def test_one_step_runs_and_one_is_ready_behind_it_and_no_more(loop: EngineLoop, engine: GatedEngine) -> None:
    busy = await occupy(loop, engine)
    tasks = [call(loop, make_sequence(90)) for _ in range(5)]
    await until(lambda: len(loop.scheduler.queue) == 5)
    for left in range(5, 0, -1):
        for _ in range(20):  # time enough for a third step, were there one
            await asyncio.sleep(0)
        assert len(loop.running.steps) == 2
        assert len(loop.scheduler.queue) == left
        engine.permits.release()
        await until(lambda left=left: len(loop.scheduler.queue) == left - 1)
    engine.open_gate()
    await asyncio.gather(*busy, *tasks)


async def test_deadline_that_passes_in_the_queue_is_told(loop: EngineLoop, engine: GatedEngine) -> None:
    busy = await occupy(loop, engine)
    late, fine = call(loop, make_sequence(2, 50), make_sequence(3, 50), timeout_s=0.0), call(loop, make_sequence(2))
    await until(lambda: len(loop.scheduler.queue) == 3)
    engine.open_gate()
    with pytest.raises(DeadlineExceeded):
        await late
    await asyncio.gather(fine, *busy)
    assert not any(ids[0] == 50 for batch in engine.batches for ids in batch)
    assert not loop.encoding.calls


async def test_cancelled_call_frees_its_place(loop: EngineLoop, engine: GatedEngine) -> None:
    busy = await occupy(loop, engine)
    gone, here = call(loop, make_sequence(90, 500)), call(loop, make_sequence(90, 700))
    await until(lambda: len(loop.scheduler.queue) == 2)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    engine.open_gate()
    await asyncio.gather(here, *busy)
    assert not any(ids[0] == 500 for batch in engine.batches for ids in batch)
    assert loop.scheduler.queue.num_tokens == 0
    assert not loop.encoding.calls


async def test_call_cancelled_while_it_runs_is_forgotten(loop: EngineLoop, engine: GatedEngine) -> None:
    busy = await occupy(loop, engine)
    busy[0].cancel()
    engine.open_gate()
    await busy[1]
    assert not loop.encoding.calls


async def test_failing_step_is_halved_until_the_culprit_is_alone(loop: EngineLoop, engine: GatedEngine) -> None:
    busy = await occupy(loop, engine)
    sequences = [make_sequence(length, length * 10) for length in (5, 3, 4, 3, 8, 6, 2)]
    tasks = [call(loop, sequence) for sequence in sequences]
    culprit = call(loop, make_sequence(1, POISON))
    await until(lambda: len(loop.scheduler.queue) == 8)
    num_before = len(engine.batches)
    engine.open_gate()
    with pytest.raises(EngineFailure, match=str(POISON)):
        await culprit
    answers = await asyncio.gather(*tasks)
    assert [answer.values[0].tolist() for answer in answers] == expected_rows(sequences)
    await asyncio.gather(*busy)
    steps = engine.batches[num_before:]
    failed = [len(batch) for batch in steps if [POISON] in batch]
    assert failed == [8, 4, 2, 1]
    assert loop.status()[0].is_ready


async def test_one_bad_input_fails_its_call_and_no_other(loop: EngineLoop) -> None:
    bad = call(loop, make_sequence(3), make_sequence(1, POISON), make_sequence(4))
    good = call(loop, make_sequence(5))
    with pytest.raises(EngineFailure):
        await bad
    assert (await good).values.tolist() == expected_rows([make_sequence(5)])
    assert not loop.encoding.calls


async def test_error_nobody_foresaw_fails_the_call_and_not_the_loop(loop: EngineLoop, engine: GatedEngine) -> None:
    engine.error = ZeroDivisionError("of course")
    with pytest.raises(EngineFailure, match="of course"):
        await call(loop, make_sequence(3))
    engine.error = None
    await call(loop, make_sequence(3))


async def test_input_over_the_budget_is_refused(loop: EngineLoop) -> None:
    with pytest.raises(EngineFailure, match="101 tokens"):
        await call(loop, make_sequence(101))
    await call(loop, make_sequence(100))


async def test_lazy_loop_starts_a_full_batch_at_once(engine: GatedEngine) -> None:
    """It would wait far longer than this test has patience for."""
    loop = make_loop(engine, max_wait_s=10 * PATIENCE_S)
    await loop.start()
    first = call(loop, make_sequence(50))
    await until(lambda: len(loop.scheduler.queue) == 1)
    second = call(loop, make_sequence(50), timeout_s=100 * PATIENCE_S)
    await asyncio.wait_for(asyncio.gather(first, second), PATIENCE_S)
    await loop.close()


async def test_close_fails_who_still_waits(engine: GatedEngine) -> None:
    loop = make_loop(engine)
    await loop.start()
    await until(lambda: loop.status()[0].is_ready)
    tasks = [*await occupy(loop, engine), call(loop, make_sequence(90))]
    await until(lambda: len(loop.scheduler.queue) == 1)
    closing = asyncio.create_task(loop.close())
    await asyncio.sleep(0)
    engine.open_gate()
    await closing
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[2], EngineUnavailable)
    assert all(isinstance(result, Answer | EngineUnavailable) for result in results)
    assert engine.is_closed
    assert not loop.device.thread.is_alive()


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


async def test_loop_is_not_ready_before_its_first_success(engine: GatedEngine, clock: Clock) -> None:
    engine.close_gate()
    loop = make_loop(engine, canary_interval_s=5.0)
    await loop.start()
    status = loop.status()[0]
    assert (status.is_ready, status.reason) == (False, "starting")
    engine.open_gate()
    await until(lambda: loop.status()[0].is_ready)
    await loop.close()


async def test_canary_keeps_an_idle_loop_ready(engine: GatedEngine, clock: Clock) -> None:
    loop = make_loop(engine, canary_interval_s=5.0)
    await loop.start()
    for num_canaries in range(1, 6):
        await until(lambda num_canaries=num_canaries: len(engine.batches) == num_canaries)
        await until(lambda: not loop.running.steps)
        assert loop.status()[0].is_ready
        clock.now_s += 5.0
    assert engine.num_trims >= 4
    await loop.close()


@pytest.mark.parametrize("failure", ["raises", "nan"])
async def test_engine_that_fails_its_canaries_is_not_ready(engine: GatedEngine, clock: Clock, failure: str) -> None:
    loop = make_loop(engine, canary_interval_s=5.0)
    await loop.start()
    await until(lambda: loop.status()[0].is_ready)
    if failure == "raises":
        engine.error = RuntimeError("broken")
    else:
        engine.makes_nan = True
    clock.now_s += 14.9
    assert loop.status()[0].is_ready
    num_before = len(engine.batches)
    await until(lambda: len(engine.batches) > num_before)
    clock.now_s += 0.2
    status = loop.status()[0]
    assert (status.is_ready, status.reason) == (False, "no forward pass has succeeded for 15 s")
    engine.error, engine.makes_nan = None, False
    clock.now_s += 5.0
    await until(lambda: loop.status()[0].is_ready)
    await loop.close()


async def test_engine_that_goes_on_failing_is_given_up(engine: GatedEngine, clock: Clock) -> None:
    """Three canaries in a row: the loop says so, which ends the process, and tells whoever calls."""
    loop = make_loop(engine, canary_interval_s=5.0)
    await loop.start()
    await until(lambda: loop.status()[0].is_ready)
    engine.error = RuntimeError("broken")
    for _ in range(3):
        num_before = len(engine.batches)
        clock.now_s += 5.1
        await until(lambda num_before=num_before: len(engine.batches) > num_before)
    await until(loop.crashed.is_set)
    assert not loop.status()[0].is_ready
    with pytest.raises(EngineUnavailable, match="crashed"):
        await loop.run([TokenSequence(np.ones(3, np.int32))], clock.now_s + 10)
    await loop.close()


async def test_busy_loop_runs_no_canaries(loop: EngineLoop, engine: GatedEngine, monkeypatch: Any) -> None:
    num_canaries = sum(batch == [[0]] for batch in engine.batches)
    for _ in range(20):
        await call(loop, make_sequence(3))
    assert sum(batch == [[0]] for batch in engine.batches) == num_canaries == 1
