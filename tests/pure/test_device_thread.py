"""An engine that shares its cores: it computes in its turns only, and waiting for one is not its fault."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from time import monotonic

import pytest

from runtime.batch import Batch
from server.engine import engine_loop, health
from server.engine.batchers.batcher import Run, Step
from server.engine.batchers.packing import pack_sequences
from server.engine.core_lease import CoreLease
from server.engine.cost_model import CostModel, StepCost
from server.engine.executor import DeviceThread
from server.errors import EngineFailure
from tests.pure.fake_requests import make_job, make_sequence
from tests.pure.gated_engine import GatedEngine, PackedLoop, make_loop, read_rows, until

pytestmark = pytest.mark.anyio

SHARES = (1.0, 1.0)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine() -> GatedEngine:
    return GatedEngine()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lease-0"


@pytest.fixture
def other(path: Path) -> Iterator[CoreLease]:
    """Of an engine in the way of ours, which has used so much that it is never first."""
    lease = CoreLease(path, SHARES, 1)
    with lease.locked():
        lease.turns.settle(1, 1000.0)
    yield lease
    lease.close()


@pytest.fixture
async def loop(engine: GatedEngine, path: Path, other: CoreLease) -> AsyncIterator[PackedLoop]:
    loop = make_loop(engine, lease=CoreLease(path, SHARES, 0))
    await loop.start()
    await until(lambda: loop.statuses()[0].is_ready and not loop.under_way)
    yield loop
    engine.open_gate()
    await loop.close()


async def test_a_step_runs_in_a_turn_and_gives_it_back(loop: PackedLoop, engine: GatedEngine, other: CoreLease) -> None:
    other.acquire(100.0)
    num_before = len(engine.batches)
    reading = asyncio.create_task(read_rows(loop.submit(make_job([make_sequence(3)]))))
    await until(lambda: loop.under_way)
    await asyncio.sleep(0.1)
    assert len(engine.batches) == num_before
    other.give_back()
    assert len(await reading) == 1
    await asyncio.to_thread(other.acquire, 100.0)


async def test_waiting_for_a_turn_is_no_hanging(
    loop: PackedLoop, other: CoreLease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "LEAST_PATIENCE_S", 0.3)
    monkeypatch.setattr(health, "FIRST_PATIENCE_S", 0.3)
    other.acquire(100.0)
    reading = asyncio.create_task(read_rows(loop.submit(make_job([make_sequence(3)]))))
    await asyncio.sleep(1.0)
    assert not loop.crashed.is_set()
    assert loop.statuses()[0].is_ready
    other.give_back()
    assert len(await reading) == 1


async def test_hanging_in_a_turn_is_hanging(
    loop: PackedLoop, engine: GatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "LEAST_PATIENCE_S", 0.3)
    monkeypatch.setattr(health, "FIRST_PATIENCE_S", 0.3)
    engine.close_gate()
    stream = loop.submit(make_job([make_sequence(3)]))
    await until(loop.crashed.is_set)
    stream.cancel()


async def test_steps_are_timed_from_their_turn_on(
    loop: PackedLoop, other: CoreLease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the cost model would learn the other engines' steps."""
    times = []
    observe = loop.batcher.observe
    monkeypatch.setattr(loop.batcher, "observe", lambda result: (times.append(result), observe(result)))
    other.acquire(100.0)
    reading = asyncio.create_task(read_rows(loop.submit(make_job([make_sequence(3)]))))
    await asyncio.sleep(0.3)
    given_s = monotonic()
    other.give_back()
    await reading
    await until(lambda: times)
    assert times[-1].started_s >= given_s


async def test_the_next_step_is_formed_late_though_the_first_waits(
    loop: PackedLoop, engine: GatedEngine, other: CoreLease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes while a step waits for its turn should find one place in the next step, all together."""
    monkeypatch.setattr(CostModel, "predict", lambda model, cost: 10 * engine_loop.PREFETCH_LEAD_S)
    other.acquire(100.0)
    readings = [asyncio.create_task(read_rows(loop.submit(make_job([make_sequence(3)]))))]
    await until(lambda: loop.under_way)
    for _ in range(4):
        await asyncio.sleep(0.05)
        readings.append(asyncio.create_task(read_rows(loop.submit(make_job([make_sequence(3)])))))
    await asyncio.sleep(0.05)
    assert len(loop.under_way) == 1
    other.give_back()
    await asyncio.gather(*readings)
    assert [len(batch) for batch in engine.batches[-2:]] == [1, 4]


async def test_a_turn_that_cannot_be_had_fails_the_step_and_not_the_thread(
    loop: PackedLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(predicted_s: float) -> None:
        raise OSError("no locks available")

    with monkeypatch.context() as patch:
        patch.setattr(CoreLease, "acquire", lambda lease, predicted_s: fail(predicted_s))
        with pytest.raises(EngineFailure, match="no locks available"):
            await read_rows(loop.submit(make_job([make_sequence(3)])))
    assert len(await read_rows(loop.submit(make_job([make_sequence(3)])))) == 1


async def test_who_waits_for_the_cores_ends_what_goes_on_by_itself(path: Path, other: CoreLease) -> None:
    """Else a turn would be a run of steps."""

    waits = False

    class Endless(Step):
        def follow(self, runs: Sequence[Run], elapsed_s: float) -> tuple[Sequence[int], Batch] | None:
            if len(runs) == 3 and waits:
                other.ask(1.0)
            return ([0], self.batch) if len(runs) < 9 else None

    device: DeviceThread[Endless] = DeviceThread(GatedEngine(), "null", CoreLease(path, SHARES, 0))
    step = Endless(pack_sequences([make_sequence(3)]), StepCost(3, 9), 0.0)
    assert len(device.run(step).following) == 8
    waits = True
    assert len(device.run(step).following) == 3
    device.stop()
