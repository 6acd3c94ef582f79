"""The choice of a precision, on engines whose speeds are made up."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import precision_trial
from runtime.batch import ArraySpec, Batch, Output
from runtime.compile_cache import read_choice, write_choice
from runtime.config import AccuracyLevel, Precision
from runtime.engine import EngineInfo, MemoryStats, Progress
from runtime.engines.adaptive import AdaptiveEngine
from runtime.engines.transfer import make_batch
from runtime.precision_choice import Candidate, ChosenPrecision, choose_fastest, choose_per_bucket
from runtime.precision_trial import Samples, list_sizes, make_samples, try_engines
from runtime.quantization.accuracy import Accuracy

ROWS = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
NOISE = np.random.default_rng(1).standard_normal((64, 8)).astype(np.float32)
SIZES = (16, 32, 64)


class FakeEngine:
    """Answers with FP32's rows and some noise; a step is said to take `seconds(num_tokens)`."""

    def __init__(
        self, name: str, seconds: Callable[[int], float], noise: float = 0.0, output: str = "embeddings"
    ) -> None:
        spec = ArraySpec(output, "float32", ("num_seqs", 8))
        self.info = EngineInfo("planned", name, "", "cpu", 1, (spec,), 100, 10, 256, kernels="avx2")
        self.seconds, self.noise = seconds, noise
        self.num_runs = 0
        self.is_closed = False

    def warmup(self, progress: Progress) -> None: ...

    def run(self, batch: Batch) -> Output:
        self.num_runs += 1
        rows = ROWS[: batch.num_seqs] + self.noise * NOISE[: batch.num_seqs]
        return Output({self.info.outputs[0].name: rows})

    def memory(self) -> MemoryStats:
        return MemoryStats(weight_bytes=100, num_arena_allocations=1)

    def trim(self) -> None: ...

    def close(self) -> None:
        self.is_closed = True


def silent(stage: str, done: int, total: int) -> None:
    """No progress is shown."""


@pytest.fixture(autouse=True)
def made_up_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_trial, "time_run", lambda engine, batch: engine.seconds(batch.num_tokens))


def choose(
    *engines: FakeEngine,
    level: AccuracyLevel = "fast",
    per_bucket: bool = False,
    known: Mapping[Precision, Accuracy] | None = None,
) -> ChosenPrecision:
    by_name = {engine.info.precision: engine for engine in engines}
    samples = Samples([make_batch([4] * 64)], "64 texts")
    sizes = [make_batch([num_tokens]) for num_tokens in SIZES]
    return try_engines(by_name, samples, sizes, known or {}, level, per_bucket=per_bucket, progress=silent)  # type: ignore[arg-type]


FP32 = FakeEngine("fp32", lambda n: n)
QUICK = FakeEngine("int8", lambda n: n / 2, noise=0.02)
"""Slower than FP32 where a batch is small."""
LATE = FakeEngine("int8", lambda n: 40 + n / 4, noise=0.02)


def test_one_precision_for_all_sizes_by_the_mean_of_the_gains() -> None:
    chosen = choose(FP32, QUICK)
    assert (chosen.by_tokens, chosen.sizes, chosen.kernels) == (((64, "int8"),), SIZES, "avx2")
    assert [candidate.gain for candidate in chosen.candidates] == pytest.approx([1, 2])
    late = choose(FP32, LATE)
    assert late.by_tokens == ((64, "fp32"),)
    assert late.candidates[1].gain == pytest.approx(math.prod((16 / 44, 32 / 48, 64 / 56)) ** (1 / 3), rel=1e-3)


def test_each_size_may_have_its_own() -> None:
    chosen = choose(FP32, LATE, per_bucket=True)
    assert chosen.by_tokens == ((32, "fp32"), (64, "int8"))
    assert (chosen.find(32), chosen.find(33), chosen.find(10**6), chosen.used) == (
        "fp32",
        "int8",
        "int8",
        ("fp32", "int8"),
    )
    assert str(chosen).startswith("fp32 up to 32 tokens, int8 up to 64 tokens; fp32, exact; int8, ")


def test_no_larger_size_is_begun_once_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_trial, "BUDGET_S", 0.0)
    chosen = choose(FP32, LATE, per_bucket=True)
    assert chosen.sizes == (16,) and chosen.by_tokens == ((64, "fp32"),)


def test_a_precision_that_is_hopelessly_slow() -> None:
    chosen = choose(FP32, FakeEngine("int8", lambda n: n * 1e6))
    assert chosen.used == ("fp32",) and chosen.candidates[1].gain == pytest.approx(0.001)


def test_gain_must_be_worth_it() -> None:
    exact = Candidate("fp32", (1.0,), Accuracy(), "")
    bf16, int8 = replace(exact, precision="bf16"), replace(exact, precision="int8")
    assert choose_fastest([(exact, 1.0), (int8, 1.02)], "fast") == "fp32"
    assert choose_fastest([(exact, 1.0), (bf16, 1.5), (int8, 1.52)], "fast") == "bf16"
    assert choose_fastest([(exact, 1.0), (bf16, 1.5), (int8, 2.0)], "fast") == "int8"


def test_said_is_what_was_given_up_for_what_gain() -> None:
    text = str(choose(FP32, QUICK))
    assert text.startswith("int8, 2.00 times as fast as fp32 over batches of 16 to 64 tokens, for cosine 0.99")
    assert text.endswith("of the nearest texts the same (64 texts)")


def test_said_is_what_was_left_out_and_why() -> None:
    text = str(choose(FP32, QUICK, level="strict"))
    assert text.startswith("fp32, exact; left out: int8, 2.00 times as fast but not strict: cosine 0.99")
    assert text.endswith("(64 texts); accuracy balanced takes it")
    text = str(choose(FP32, FakeEngine("int8", lambda n: n / 2, noise=1)))
    assert text.endswith("no accuracy takes it")
    text = str(choose(FP32, FakeEngine("int8", lambda n: n * 2)))
    assert text == "fp32, exact; left out: int8, 0.50 times as fast"


def test_classifiers_are_judged_by_labels() -> None:
    fp32, int8 = FakeEngine("fp32", lambda n: n, output="logits"), FakeEngine("int8", lambda n: n / 2, 0.1, "logits")
    accuracy = choose(fp32, int8).candidates[1].accuracy
    assert accuracy.agrees_on == "labels" and 0.05 < accuracy.error < 0.2


NEAR = {"num_texts": 800, "cosine_p1": 0.996, "agreement": 0.956}
"""INT8 of MiniLM on texts people wrote, calibrated or not."""


def test_a_calibration_counts_more_than_samples() -> None:
    """Its texts are the user's own, on which 95 of 100 are enough; ours, which are easier, want 98."""
    int8 = FakeEngine("int8", lambda n: n / 2, noise=1)
    chosen = choose(FP32, int8, level="balanced", known={"int8": Accuracy(**NEAR)})  # type: ignore[arg-type]
    assert chosen.used == ("int8",)
    assert "(the 800 held-out texts of its calibration)" in str(chosen)
    assert choose(FP32, int8, level="strict", known={"int8": Accuracy(**NEAR)}).used == ("fp32",)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("accuracy", "admitted"),
    [
        (Accuracy(140, 0.005, cosine_p1=0.99996, agreement=0.99), {"strict", "balanced", "fast"}),
        (Accuracy(140, 0.04, cosine_p1=0.996, agreement=0.985), {"balanced", "fast"}),
        (Accuracy(140, 0.04, cosine_p1=0.9978, agreement=0.977), {"fast"}),
        (Accuracy(140, 0.2, cosine_p1=0.97, agreement=0.95), set()),
        (Accuracy(140, math.nan, cosine_p1=math.nan, agreement=0.0), set()),
        (Accuracy(140, 0.005, agreement=1.0, agrees_on="labels"), {"strict", "balanced", "fast"}),
        (Accuracy(140, 0.015, agreement=0.99, agrees_on="labels"), {"balanced", "fast"}),
        (Accuracy(140, 0.043, agreement=0.993, agrees_on="labels"), {"fast"}),
        (Accuracy(140, 0.01, agreement=0.9, agrees_on="labels"), set()),
    ],
)
def test_what_each_level_admits(accuracy: Accuracy, admitted: set[AccuracyLevel]) -> None:
    candidate = Candidate("int8", (2.0,), accuracy, "")
    levels: tuple[AccuracyLevel, ...] = ("strict", "balanced", "fast")
    assert {level for level in levels if candidate.is_admitted(level)} == admitted


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "choice.json"
    chosen = choose(FP32, QUICK)
    write_choice(path, chosen)
    assert read_choice(path) == chosen
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("num_seqs", [1, 7, 200])
def test_random_sequences_differ(num_seqs: int) -> None:
    samples = make_samples(1000, 8, num_seqs)
    sequences = np.concatenate([batch.arrays["input_ids"].reshape(-1, 8) for batch in samples.batches])
    assert len({tuple(sequence) for sequence in sequences}) == 128
    assert max(batch.num_seqs for batch in samples.batches) == min(num_seqs, 128)


@given(st.integers(1, 5000))
def test_sizes_end_with_the_largest_batch(largest: int) -> None:
    sizes = list_sizes(largest)
    assert sizes[-1] == largest
    assert sizes == sorted(set(sizes))


@given(st.lists(st.floats(0.5, 2.0), min_size=1, max_size=9))
def test_a_table_has_no_equal_neighbours_and_finds_the_fastest(gains: list[float]) -> None:
    exact = Candidate("fp32", (1.0,) * len(gains), Accuracy(), "")
    int8 = Candidate("int8", tuple(gains), Accuracy(), "")
    sizes = [16 * (index + 1) for index in range(len(gains))]
    chosen = ChosenPrecision(choose_per_bucket([exact, int8], "fast", sizes), "fast")
    assert [chosen.find(size) for size in sizes] == ["int8" if gain > 1.03 else "fp32" for gain in gains]
    assert all(one[1] != other[1] for one, other in zip(chosen.by_tokens, chosen.by_tokens[1:], strict=False))


class TestAdaptiveEngine:
    def test_runs_each_batch_in_what_was_chosen_for_its_size(self) -> None:
        fp32, int8 = FakeEngine("fp32", lambda n: n), FakeEngine("int8", lambda n: n)
        chosen = ChosenPrecision(((16, "fp32"), (256, "int8")), "fast")
        engine = AdaptiveEngine({"fp32": fp32, "int8": int8}, chosen)
        for num_tokens in (8, 16, 17, 256, 300):
            engine.run(make_batch([num_tokens]))
        assert (fp32.num_runs, int8.num_runs) == (2, 3)
        assert (engine.info.precision, engine.info.chosen) == ("fp32+int8", chosen)
        assert engine.memory() == MemoryStats(weight_bytes=200, num_arena_allocations=2)
        engine.close()
        assert fp32.is_closed and int8.is_closed
