"""The shapes an engine is timed on: all of them allowed, and different enough to tell tokens from squares."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.batch import Batch, Output
from runtime.engine import EngineInfo
from runtime.engines.null import NullEngine
from server.engine import calibration
from server.engine.calibration import calibrate, list_shapes
from server.engine.cost_model import StepCost
from tests.pure.fake_requests import OUTPUT


@given(st.integers(1, 20_000), st.integers(1, 600), st.integers(1, 20_000))
@settings(deadline=None)
def test_no_shape_is_over_the_limits(max_batch_tokens: int, max_batch_requests: int, max_input_tokens: int) -> None:
    max_input_tokens = min(max_input_tokens, max_batch_tokens)
    shapes = list_shapes(max_batch_tokens, max_batch_requests, max_input_tokens)
    assert shapes
    for num_seqs, seqlen in shapes:
        assert 1 <= num_seqs <= max_batch_requests
        assert 1 <= seqlen <= max_input_tokens
        assert num_seqs * seqlen <= max_batch_tokens


def test_usual_limits_give_shapes_that_determine_three_coefficients() -> None:
    terms = [[1, count * length, count * length**2] for count, length in list_shapes(4096, 512, 256)]
    assert np.linalg.matrix_rank(np.array(terms)) == 3


@dataclass
class TimedEngine(NullEngine):
    """Winds the clock by what a step should take."""

    now_s: float = 0.0
    progress: list[tuple[str, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(EngineInfo("null", "none", "", "cpu", 1, (OUTPUT,)))

    def run(self, batch: Batch) -> Output:
        squares = int(np.square(batch.seqlens.astype(np.int64)).sum())
        self.now_s += 1e-3 + 2e-5 * batch.num_tokens + 3e-8 * squares
        return super().run(batch)


def test_engine_that_keeps_time_is_predicted(monkeypatch: Any) -> None:
    engine = TimedEngine()
    monkeypatch.setattr(calibration, "monotonic", lambda: engine.now_s)
    model = calibrate(
        engine,
        max_batch_tokens=4096,
        max_batch_requests=512,
        max_input_tokens=512,
        progress=lambda *told: engine.progress.append(told),
    )
    assert model.predict(StepCost(1000, 50_000)) == pytest.approx(1e-3 + 2e-2 + 1.5e-3, rel=1e-3)
    assert engine.progress[-1][1] == engine.progress[-1][2] == len(engine.progress) - 1
