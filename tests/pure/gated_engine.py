"""A null engine that a test stops and lets go step by step, and an EngineLoop around it."""

import asyncio
import threading
from collections.abc import Callable

import numpy as np
from prometheus_client import CollectorRegistry
from server.engine.batchers.scheduler import SchedulerLimits

from runtime.batch import ArraySpec, Batch, Output
from runtime.engine import EngineInfo
from runtime.engines.null import NullEngine
from server.engine.batchers.packing import pack
from server.engine.cost_model import CostModel
from server.engine.engine_loop import EngineLoop
from server.metrics import Metrics
from server.wire.job import TokenSequence

OUTPUT_DIM = 4
OUTPUT = ArraySpec("embeddings", "float32", ("num_seqs", OUTPUT_DIM))
POISON = 1_000_000
PATIENCE_S = 30.0
"""How long anything may take before a test fails: far more than it does, as the machine may be busy."""


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


def make_loop(engine: GatedEngine, *, max_wait_s: float = 0.0, canary_interval_s: float = 1000.0) -> EngineLoop:
    """Unless a test wants them, no canaries but the first."""
    limits = SchedulerLimits(max_batch_tokens=100, max_batch_requests=8, max_wait_s=max_wait_s)
    metrics = Metrics(CollectorRegistry())
    return EngineLoop(engine, limits, CostModel(), metrics, model="m", canary_interval_s=canary_interval_s)


def expected_rows(sequences: list[TokenSequence]) -> list[list[float]]:
    """What the null engine says to each alone."""
    engine = GatedEngine()
    return [engine.run(pack([sequence])).arrays["embeddings"][0].tolist() for sequence in sequences]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)
