"""Which shapes an engine that pads is timed on, and what is made of it."""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.batch import Batch, Output
from runtime.engine import EngineInfo
from runtime.engines.null import NullEngine
from server.engine import calibration, padded_calibration
from server.engine.padded_calibration import BUDGET_S, GRID_RATIO, Cell, calibrate_padded, list_lines
from server.engine.padded_costs import PaddedCosts
from tests.pure.fake_requests import OUTPUT


@dataclass
class PaddingEngine(NullEngine):
    """Winds the clock by what a step should take. Mutable besides: the shapes it was run with.

    `cliff`: sequences longer than this take three times as long.
    """

    per_token_s: float = 1e-6
    cliff: int = 1_000_000
    now_s: float = 0.0
    shapes: list[tuple[int, int]] = field(default_factory=list)
    progress: list[tuple[str, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(EngineInfo("null", "none", "", "cpu", 1, (OUTPUT,), pads=True))

    def time_of(self, num_seqs: int, longest: int) -> float:
        factor = 1 if longest <= self.cliff else 3
        return 1e-5 + factor * self.per_token_s * num_seqs * longest

    def run(self, batch: Batch) -> Output:
        assert len(set(batch.seqlens.tolist())) == 1, "Shapes are timed without padding."
        self.shapes.append((batch.num_seqs, batch.max_seqlen))
        self.now_s += self.time_of(*self.shapes[-1])
        return super().run(batch)


def calibrate(
    engine: PaddingEngine,
    monkeypatch: pytest.MonkeyPatch,
    *,
    max_batch_tokens: int = 4096,
    max_batch_requests: int = 64,
    max_input_tokens: int = 512,
) -> PaddedCosts:
    for module in (calibration, padded_calibration):
        monkeypatch.setattr(module, "monotonic", lambda: engine.now_s)
    return calibrate_padded(
        engine,
        max_batch_tokens=max_batch_tokens,
        max_batch_requests=max_batch_requests,
        max_input_tokens=max_input_tokens,
        progress=lambda *told: engine.progress.append(told),
    )


def test_engine_that_keeps_time_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PaddingEngine()
    costs = calibrate(engine, monkeypatch)
    assert costs.is_measured
    for shape in [(1, 1), (5, 100), (64, 64), (8, 512)]:
        assert costs.predict(*shape) == pytest.approx(engine.time_of(*shape), rel=0.01)


def test_only_allowed_shapes_are_run_the_smallest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PaddingEngine()
    calibrate(engine, monkeypatch, max_batch_tokens=300, max_batch_requests=7, max_input_tokens=500)
    sizes = [num_seqs * seqlen for num_seqs, seqlen in engine.shapes]
    assert engine.shapes[0] == (1, 1) and max(sizes) <= 300
    assert max(seqlen for _, seqlen in engine.shapes) == 300
    assert max(num_seqs for num_seqs, _ in engine.shapes) == 7


def test_grid_is_finer_where_the_middle_is_not_what_it_seems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond 100 tokens everything takes three times as long: where there was one line between 64 and 256, there are
    some, and none between 1 and 16."""
    engine = PaddingEngine(cliff=100)
    costs = calibrate(engine, monkeypatch)
    lines = costs.table.seqlens.tolist()
    assert sum(64 < line < 256 for line in lines) >= 3
    assert not any(1 < line < 4 or 4 < line < 16 for line in lines)
    assert engine.now_s <= BUDGET_S
    for num_seqs in (4, 20):
        for longest in (40, 90, 130, 200):
            assert costs.predict(num_seqs, longest) == pytest.approx(engine.time_of(num_seqs, longest), rel=0.25)


def test_slow_engine_is_timed_no_longer_than_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be measured is taken to cost as much by the token as what was."""
    engine = PaddingEngine(per_token_s=2e-3)
    costs = calibrate(engine, monkeypatch)
    assert 0.5 * BUDGET_S < engine.now_s <= BUDGET_S
    assert costs.predict(64, 64) == pytest.approx(engine.time_of(64, 64), rel=0.3)


def test_first_shape_is_timed_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PaddingEngine(per_token_s=10 * BUDGET_S)
    costs = calibrate(engine, monkeypatch)
    assert set(engine.shapes) == {(1, 1)}
    assert costs.predict(1, 1) == pytest.approx(10 * BUDGET_S, rel=1e-3)


def test_larger_steps_never_look_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though here they are: as where a kernel is chosen by the shape."""
    engine = PaddingEngine()
    monkeypatch.setattr(engine, "time_of", lambda num_seqs, longest: 1e-3 * (2 if longest % 16 else 1))
    costs = calibrate(engine, monkeypatch)
    found = costs.read(np.arange(1, 65), np.arange(1, 513, 5))
    assert (np.diff(found, axis=0) >= -1e-12).all() and (np.diff(found, axis=1) >= -1e-12).all()


def test_progress_ends_with_all_done(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PaddingEngine(cliff=100)
    calibrate(engine, monkeypatch)
    assert all(done <= total for _, done, total in engine.progress)
    assert engine.progress[-1][1] == engine.progress[-1][2]


@pytest.mark.parametrize(("tokens", "requests", "length"), [(1, 1, 1), (512, 1, 512), (64, 64, 1), (2, 2, 2)])
def test_limits_may_leave_a_single_line(
    tokens: int, requests: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = PaddingEngine()
    costs = calibrate(
        engine, monkeypatch, max_batch_tokens=tokens, max_batch_requests=requests, max_input_tokens=length
    )
    assert costs.predict(requests, min(length, tokens // requests)) > 0


@given(st.integers(1, 10_000))
def test_lines_go_from_one_to_the_largest(largest: int) -> None:
    lines = list_lines(largest)
    assert (lines[0], lines[-1]) == (1, largest)
    assert all(before < after <= GRID_RATIO * before for before, after in pairwise(lines))


@given(st.integers(1, 100), st.integers(0, 100), st.integers(1, 100), st.integers(0, 100))
def test_cells_become_smaller_until_there_is_nothing_between(a: int, b: int, c: int, d: int) -> None:
    cells, num_cells = [Cell((a, a + b), (c, c + d))], 0
    while cells:
        cell = cells.pop()
        num_cells += 1
        if not cell.is_smallest:
            num_seqs, seqlen = cell.middle
            assert cell.num_seqs[0] <= num_seqs <= cell.num_seqs[1]
            assert cell.seqlens[0] <= seqlen <= cell.seqlens[1]
            cells.append(cell.divide()[-1])
    assert num_cells <= 2 * 100
