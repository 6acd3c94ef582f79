"""A null engine that a test stops and lets go step by step, and an EngineLoop around it."""

import asyncio
import threading
from collections.abc import Callable

import numpy as np
from prometheus_client import CollectorRegistry

from runtime.batch import Batch, Output
from runtime.engine import EngineInfo
from runtime.engines.null import NullEngine
from server.engine.batchers.batcher import StepLimits
from server.engine.batchers.encoding import EncoderStep
from server.engine.batchers.packed import PackedBatcher
from server.engine.batchers.packing import pack_sequences
from server.engine.core_lease import CoreLease
from server.engine.cost_model import CostModel
from server.engine.engine_loop import EngineLoop
from server.engine.executor import DeviceThread
from server.metrics import Metrics
from server.wire.job import TokenSequence
from server.wire.result_stream import ResultStream
from tests.pure.fake_requests import OUTPUT, REDUCERS

POISON = 1_000_000
PATIENCE_S = 30.0
"""How long anything may take before a test fails: far more than it does, as the machine may be busy."""

PackedLoop = EngineLoop[EncoderStep]


class GatedEngine(NullEngine):
    """Mutable: what was run. While the gate is closed each step waits for a permit."""

    def __init__(self) -> None:
        info = EngineInfo("null", "none", "computes nothing", "cpu", 1, (OUTPUT,), max_batch_tokens=100)
        super().__init__(info, fail_token_id=POISON)
        self.permits = threading.Semaphore(0)
        self.is_open = True
        self.batches: list[list[list[int]]] = []
        self.error: Exception | None = None
        self.makes_nan = self.is_closed = False
        self.num_trims = 0

    def run(self, batch: Batch) -> Output:
        self.batches.append([ids.tolist() for ids in np.split(batch.arrays["input_ids"], batch.cu_seqlens[1:-1])])
        if not self.is_open:
            assert self.permits.acquire(timeout=PATIENCE_S)
        if self.error is not None:
            raise self.error
        output = super().run(batch)
        return Output({name: array * np.nan for name, array in output.arrays.items()}) if self.makes_nan else output

    def close_gate(self) -> None:
        self.is_open = False

    def open_gate(self) -> None:
        self.is_open = True
        self.permits.release(1000)

    def trim(self) -> None:
        self.num_trims += 1

    def close(self) -> None:
        self.is_closed = True


def make_batcher(*, max_wait_s: float = 0.0, cost_model: CostModel | None = None) -> PackedBatcher:
    limits = StepLimits(max_batch_tokens=100, max_batch_requests=8, max_wait_s=max_wait_s)
    return PackedBatcher(limits, CostModel() if cost_model is None else cost_model, [OUTPUT], REDUCERS)


def make_loop(
    engine: GatedEngine,
    batcher: PackedBatcher | None = None,
    *,
    canary_interval_s: float = 1000.0,
    lease: CoreLease | None = None,
) -> PackedLoop:
    """Unless a test wants them, no canaries but the first."""
    return EngineLoop(
        lambda wake: make_batcher() if batcher is None else batcher,
        DeviceThread(engine, "device", lease),
        Metrics(CollectorRegistry()),
        model="m",
        canary_interval_s=canary_interval_s,
    )


def expected_rows(sequences: list[TokenSequence]) -> list[list[float]]:
    """What the null engine says to each alone."""
    engine = GatedEngine()
    return [engine.run(pack_sequences([sequence])).arrays["embeddings"][0].tolist() for sequence in sequences]


async def read_rows(stream: ResultStream) -> list[list[float]]:
    """Of a whole job, in its order. Whoever is cancelled while it waits cancels the job."""
    found: dict[int, list[float]] = {}
    try:
        async with asyncio.timeout(PATIENCE_S):
            async for result in stream:
                embeddings = result.arrays["embeddings"].values
                assert embeddings.dtype == np.float32
                for row, embedding in zip(result.rows.tolist(), embeddings.tolist(), strict=True):
                    assert row not in found
                    found[row] = embedding
    finally:
        stream.cancel()
    return [found[row] for row in range(len(found))]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)
