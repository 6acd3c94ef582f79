"""The choice of a precision for each size of batch, on engines whose speeds are made up."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.batch import ArraySpec, Batch, Output
from runtime.engine import EngineInfo, MemoryStats, Progress
from runtime.engines.adaptive import AdaptiveEngine, list_sizes
from runtime.engines.transfer import make_batch
from runtime.precision_choice import (
    PrecisionTable,
    choose_fastest,
    compare_rows,
    measure_agreement,
    measure_table,
    merge_equal,
    read_table,
    recall_table,
    table_path,
)


class FakeEngine:
    """Answers with `value` for every sequence after `fixed_ms` and `us_per_token`."""

    def __init__(self, name: str, value: list[float], fixed_ms: float = 0.0, us_per_token: float = 0.0) -> None:
        self.info = EngineInfo(
            "planned", name, "", "cpu", 1, (ArraySpec("rows", "float32", ("num_seqs", len(value))),), 100, 10, 256
        )
        self.value, self.fixed_s, self.s_per_token = value, fixed_ms / 1e3, us_per_token / 1e6
        self.num_runs = 0
        self.is_closed = False

    def warmup(self, progress: Progress) -> None: ...

    def run(self, batch: Batch) -> Output:
        self.num_runs += 1
        time.sleep(self.fixed_s + batch.num_tokens * self.s_per_token)
        return Output({"rows": np.tile(np.array(self.value, np.float32), (batch.num_seqs, 1))})

    def memory(self) -> MemoryStats:
        return MemoryStats(weight_bytes=100, num_arena_allocations=1)

    def trim(self) -> None: ...

    def close(self) -> None:
        self.is_closed = True


def silent(stage: str, done: int, total: int) -> None:
    """No progress is shown."""


EXACT, NEAR, FAR = [1.0, 0.0], [0.999, 0.01], [0.7, 0.7]


def adapt(tmp_path: Path, int8: FakeEngine, fp32: FakeEngine, **known: float) -> AdaptiveEngine:
    engine = AdaptiveEngine(
        {"fp32": fp32, "int8": int8},
        lambda num_tokens: make_batch([num_tokens]),
        known_agreement={name.removeprefix("known_"): value for name, value in known.items()},
        min_agreement=0.99,
        cache=tmp_path / "choice.json",
    )
    engine.warmup(silent)
    return engine


def test_each_size_runs_in_what_is_fastest_there(tmp_path: Path) -> None:
    fp32, int8 = FakeEngine("fp32", EXACT, 0, 1000), FakeEngine("int8", NEAR, 40, 100)
    engine = adapt(tmp_path, int8, fp32)
    assert [precision for _, precision in engine.table.by_tokens] == ["fp32", "int8"]
    assert engine.info.precision == "fp32+int8"
    assert engine.info.precision_by_tokens[-1] == (256, "int8")
    before = fp32.num_runs, int8.num_runs
    engine.run(make_batch([8]))
    engine.run(make_batch([256]))
    assert (fp32.num_runs, int8.num_runs) == (before[0] + 1, before[1] + 1)
    assert engine.memory() == MemoryStats(weight_bytes=200, num_arena_allocations=2)
    engine.close()
    assert fp32.is_closed and int8.is_closed


def test_what_is_too_far_from_fp32_is_left_out_and_let_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    int8 = FakeEngine("int8", FAR)
    with caplog.at_level("INFO", "padless"):
        engine = adapt(tmp_path, int8, FakeEngine("fp32", EXACT, 1))
    assert engine.table.used == ("fp32",)
    assert int8.is_closed
    assert "under min_cosine 0.99: int8 with 0.7" in caplog.text


def test_what_calibration_measured_counts_more_than_random_tokens(tmp_path: Path) -> None:
    engine = adapt(tmp_path, FakeEngine("int8", FAR), FakeEngine("fp32", EXACT, 5), known_int8=0.995)
    assert engine.table.used == ("int8",)


def test_second_start_measures_nothing(tmp_path: Path) -> None:
    adapt(tmp_path, FakeEngine("int8", NEAR), FakeEngine("fp32", EXACT, 5))
    fp32, int8 = FakeEngine("fp32", EXACT), FakeEngine("int8", NEAR)
    engine = adapt(tmp_path, int8, fp32)
    assert engine.table.used == ("int8",)
    assert (fp32.num_runs, int8.num_runs) == (0, 0)


@pytest.mark.parametrize(
    "text", ["", "{", '{"by_tokens": []}', '{"by_tokens": [[1]], "agreement": {}, "speed": []}', "[]"]
)
def test_broken_file_is_measured_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "choice.json"
    path.write_text(text)
    table = PrecisionTable(((64, "fp32"),), {"fp32": 1.0}, ({"fp32": 1.0},))
    assert read_table(path) is None
    assert recall_table(path, lambda: table) == table
    assert read_table(path) == table


def test_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    table = PrecisionTable(((64, "fp32"),), {})
    assert recall_table(tmp_path / "file" / "choice.json", lambda: table) == table


def test_path_depends_on_every_cause() -> None:
    assert table_path("model", 1) == table_path("model", 1)
    assert table_path("model", 1) != table_path("model", 2)


def test_gain_must_be_worth_it() -> None:
    assert choose_fastest({"fp32": 1.00, "int8": 0.99}) == "fp32"
    assert choose_fastest({"fp32": 1.00, "bf16": 0.8, "int8": 0.79}) == "bf16"
    assert choose_fastest({"fp32": 1.00, "bf16": 0.8, "int8": 0.5}) == "int8"


def test_one_candidate_is_not_timed() -> None:
    engine = FakeEngine("fp32", EXACT)
    table = measure_table({"fp32": engine}, [make_batch([8])], {"fp32": 1.0}, 0.9, silent)
    assert (table.by_tokens, engine.num_runs) == (((8, "fp32"),), 0)


def test_agreement_is_the_cosine_of_the_worst_unit_row() -> None:
    expected = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    found = np.array([[1.0, 0.0], [0.6, 0.8]], np.float32)
    assert measure_agreement({"rows": found}, {"rows": expected}) == pytest.approx(0.8)
    assert measure_agreement({"a": expected, "b": found}, {"a": expected, "b": expected}) == pytest.approx(0.8)
    assert compare_rows(np.array([[3.0]], np.float32), np.array([[1.0]], np.float32)) < 0


@given(st.integers(1, 5000))
def test_sizes_end_with_the_largest_batch(largest: int) -> None:
    sizes = list_sizes(largest)
    assert sizes[-1] == largest
    assert sizes == sorted(set(sizes))


@given(st.lists(st.sampled_from(["fp32", "int8"]), min_size=1, max_size=9), st.integers(1, 200))
def test_merged_table_finds_the_same(names: list[str], num_tokens: int) -> None:
    table = PrecisionTable(tuple((16 * (index + 1), name) for index, name in enumerate(names)), {}, ({},) * len(names))
    merged = merge_equal(table)
    assert merged.find(num_tokens) == table.find(num_tokens)
    assert all(one[1] != other[1] for one, other in zip(merged.by_tokens, merged.by_tokens[1:], strict=False))
