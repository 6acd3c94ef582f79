"""A tiny BERT in planned memory: right, alone as in a batch, within its memory, and alive after any failure."""

import random
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from models.bert import Bert
from models.heads import Dense, EmbeddingHead, TextModel
from runtime.backends.cpu import library
from runtime.backends.plain.table import plain_backend
from runtime.batch import INPUTS, ArraySpec, Batch
from runtime.build import build_engine
from runtime.capture import capture
from runtime.config import EngineConfig, Precision, UnusableConfig
from runtime.engine import Engine, EngineError, EngineInfo
from runtime.engines.adaptive import AdaptiveEngine
from runtime.engines.planned import PlannedEngine, fit_capacity, peak_bytes
from runtime.engines.reference import ReferenceEngine
from runtime.engines.transfer import make_batch
from runtime.limits import BatchLimits
from runtime.lower import lower
from runtime.memory.lifetimes import BatchShape
from runtime.passes.pipeline import choose_precision, list_candidates, list_passes
from runtime.precision_choice import ChosenPrecision
from runtime.program import Program
from tests.kernels.kernel_cases import CONFIGURABLE, find_backend, find_kernels
from tests.kernels.tiny_graphs import (
    BERT_CONFIG,
    CPU,
    HIDDEN_SIZE,
    MAX_POSITIONS,
    VOCAB_SIZE,
    captured_once,
    random_batch,
    rewrite,
    tiny_bert,
)
from tests.tolerances import SAME_ENGINE, Tolerance, check_close

LIMITS = BatchLimits(max_batch_tokens=512, max_batch_requests=64, max_input_tokens=MAX_POSITIONS)
LARGEST = LIMITS.largest()
EMBEDDINGS = ArraySpec("embeddings", "float32", ("num_seqs", HIDDEN_SIZE))
INT8 = Tolerance(norm=6e-2, bound=4e-1)
"""Two layers of random weights; measured: 2e-2 and 8e-2."""


def silent(stage: str, done: int, total: int) -> None:
    """No progress is shown."""


def lower_model(module: nn.Module, implementation: str = "torch") -> Program:
    backend = find_backend(implementation)
    passes = list_passes(choose_precision("fp32", backend), backend)
    return lower(rewrite(capture(module, CPU), *passes), backend.kernels)


def build_bert(config: EngineConfig, chosen: ChosenPrecision | None = None) -> Engine:
    with captured_once(tiny_bert):
        return build_engine(tiny_bert(), config, LIMITS, silent, chosen=chosen)


@cache
def lower_bert(implementation: str) -> Program:
    return lower_model(tiny_bert(), implementation)


@pytest.fixture(scope="module", params=CONFIGURABLE)
def program(request: pytest.FixtureRequest) -> Program:
    return lower_bert(request.param)


def find_engine(kind: str, reference: Engine) -> Engine:
    return reference if kind == "reference" else make_planned(lower_bert(kind))


def make_planned(program: Program, largest: BatchShape = LARGEST, cap_bytes: int | None = None) -> PlannedEngine:
    info = EngineInfo("planned", "fp32", "", "cpu", 1, program.outputs, activation_bytes=peak_bytes(program, largest))
    (kind,) = [kind for kind in CONFIGURABLE if lower_bert(kind) is program] or ["torch"]
    return PlannedEngine(program, find_kernels(kind), largest, CPU, info, cap_bytes)


@pytest.fixture
def planned(program: Program) -> PlannedEngine:
    return make_planned(program)


@pytest.fixture(scope="module")
def reference() -> Engine:
    program = lower_bert("torch")
    info = EngineInfo("reference", "fp32", "", "cpu", 1, program.outputs)
    return ReferenceEngine(tiny_bert(), program.read_inputs, LARGEST, CPU, info)


def cut(batch: Batch, index: int) -> Batch:
    """One sequence of a batch, alone."""
    span = slice(batch.cu_seqlens[index], batch.cu_seqlens[index + 1])
    length = span.stop - span.start
    arrays = {
        name: array[[index] if INPUTS[name].dims == ("num_seqs",) else span].copy()
        for name, array in batch.arrays.items()
    }
    return Batch(arrays, np.array([0, length], np.int32), int(length))


def random_seqlens(rng: random.Random) -> list[int]:
    """Anything up to the limits: a few long ones, many short ones, one token."""
    longest = rng.choice([1, 4, 16, MAX_POSITIONS])
    room = rng.randint(1, LIMITS.max_batch_tokens)
    seqlens: list[int] = []
    while room and len(seqlens) < LIMITS.max_batch_requests:
        seqlens.append(rng.randint(1, min(longest, room)))
        room -= seqlens[-1]
    return seqlens


@pytest.mark.parametrize("seqlens", [[1], [2], [7], [1] * 64, [128] * 4, [5, 1, 30, 30, 2], [128, 1]], ids=str)
def test_planned_is_the_reference(planned: PlannedEngine, reference: Engine, seqlens: list[int]) -> None:
    batch = random_batch(seqlens)
    check_close(planned.run(batch).arrays["embeddings"], reference.run(batch).arrays["embeddings"])


def test_every_intermediate_is_planned(program: Program) -> None:
    assert [step.name for step in program.unplanned] == []


@pytest.mark.parametrize("kind", [*CONFIGURABLE, "reference"])
def test_alone_is_the_same_as_in_a_batch(kind: str, reference: Engine) -> None:
    engine = find_engine(kind, reference)
    rng = random.Random(0)
    batch = random_batch([rng.randint(1, 12) for _ in range(64)])
    together = engine.run(batch).arrays["embeddings"]
    for index in range(batch.num_seqs):
        alone = engine.run(cut(batch, index)).arrays["embeddings"]
        check_close(alone[0], together[index], tolerance=SAME_ENGINE, what=f"sequence {index}")


def test_hundreds_of_random_batches_after_warmup_allocate_nothing(planned: PlannedEngine, reference: Engine) -> None:
    planned.warmup(silent)
    before = planned.memory()
    rng = random.Random(0)
    for index in range(400):
        batch = random_batch(random_seqlens(rng), seed=index)
        values = planned.run(batch).arrays["embeddings"]
        if index % 25 == 0:
            check_close(values, reference.run(batch).arrays["embeddings"])
    after = planned.memory()
    assert after.num_arena_allocations == before.num_arena_allocations == 1
    assert after.arena_reserved_bytes == planned.info.activation_bytes
    assert after.plan_cache_hits + after.plan_cache_misses >= 400
    assert after.plan_cache_hits > after.plan_cache_misses


def test_warmup_covers_batches_of_many_short_sequences() -> None:
    """Where a wide head makes the number of sequences count: no batch of tokens alone is the largest."""
    head = EmbeddingHead(("mean",), (Dense(HIDDEN_SIZE, 2048, True, "tanh"),), True)
    module = TextModel(Bert(BERT_CONFIG), head).eval().requires_grad_(False)
    engine = make_planned(lower_model(module))
    engine.warmup(silent)
    engine.run(random_batch([1] * LIMITS.max_batch_requests))
    engine.run(random_batch([8] * LIMITS.max_batch_requests))
    assert engine.memory().num_arena_allocations == 1


def test_cap_shrinks_the_budget_and_holds(program: Program, reference: Engine) -> None:
    cap_bytes = peak_bytes(program, LARGEST) // 2
    largest = fit_capacity(program, LARGEST, MAX_POSITIONS, cap_bytes)
    assert MAX_POSITIONS <= largest.num_tokens < LIMITS.max_batch_tokens
    assert peak_bytes(program, largest) <= cap_bytes
    # Not much smaller than it need be.
    assert peak_bytes(program, BatchShape(largest.num_tokens + 32, *largest[1:])) > cap_bytes
    engine = make_planned(program, largest, cap_bytes)
    engine.warmup(silent)
    batch = random_batch([MAX_POSITIONS, largest.num_tokens - MAX_POSITIONS])
    check_close(engine.run(batch).arrays["embeddings"], reference.run(batch).arrays["embeddings"])
    assert engine.memory().arena_reserved_bytes <= cap_bytes
    with pytest.raises(ValueError, match="over the largest planned"):
        engine.run(random_batch([MAX_POSITIONS, largest.num_tokens - MAX_POSITIONS + 1]))


def test_cap_holds_without_warmup(program: Program) -> None:
    cap_bytes = peak_bytes(program, LARGEST) // 2
    engine = make_planned(program, fit_capacity(program, LARGEST, MAX_POSITIONS, cap_bytes), cap_bytes)
    rng = random.Random(1)
    for _ in range(100):
        seqlens = [length for length in random_seqlens(rng) if length <= MAX_POSITIONS][: engine.largest.num_seqs]
        while sum(seqlens) > engine.largest.num_tokens:
            seqlens.pop()
        engine.run(random_batch(seqlens or [1]))
        assert engine.memory().arena_reserved_bytes <= cap_bytes


def test_cap_too_low_for_one_input_is_refused_with_the_remedy(program: Program) -> None:
    with pytest.raises(ValueError, match=r"memory_cap_mb.*Raise memory_cap_mb or lower limits.max_input_tokens"):
        fit_capacity(program, LARGEST, MAX_POSITIONS, 1000)


@pytest.mark.parametrize("seqlens", [[128] * 4 + [1], [1] * 65, [129]], ids=["tokens", "sequences", "length"])
@pytest.mark.parametrize("kind", [*CONFIGURABLE, "reference"])
def test_batch_over_a_limit_is_refused(kind: str, seqlens: list[int], reference: Engine) -> None:
    with pytest.raises(ValueError, match="over the largest"):
        find_engine(kind, reference).run(random_batch(seqlens))


@pytest.mark.parametrize("bad_id", [VOCAB_SIZE, -1, 2**40])
@pytest.mark.parametrize("kind", [*CONFIGURABLE, "reference"])
def test_id_outside_the_vocabulary_fails_its_step_and_no_other(
    kind: str, bad_id: int, request: pytest.FixtureRequest, reference: Engine
) -> None:
    engine = find_engine(kind, reference)
    good = random_batch([5, 3])
    bad = random_batch([5, 3])
    bad.arrays["input_ids"][4] = bad_id
    with pytest.raises(EngineError, match="2 sequences failed"):
        engine.run(bad)
    check_close(engine.run(good).arrays["embeddings"], reference.run(good).arrays["embeddings"])


def test_failed_step_leaves_nothing_in_the_next(planned: PlannedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocation that fails, in the middle of growing."""
    planned.run(random_batch([4]))
    monkeypatch.setattr(planned.arena, "allocate", lambda num_bytes: torch.empty(1 << 60, dtype=torch.uint8))
    with pytest.raises(EngineError):
        planned.run(random_batch([128] * 4))
    monkeypatch.undo()
    planned.run(random_batch([128] * 4))


def test_close_gives_the_memory_back(planned: PlannedEngine) -> None:
    planned.run(random_batch([4]))
    planned.close()
    assert planned.memory().arena_reserved_bytes == 0


def test_weights_that_int8_cannot_hold_are_named() -> None:
    module = tiny_bert()
    module.get_parameter("encoder.stack.layers.1.feed_forward.up.weight")[3, 4] = torch.inf
    with pytest.raises(
        UnusableConfig, match=r"precision int8: in .*up.weight the weights of \d+ of \d+ output channels"
    ):
        build_engine(module, EngineConfig(precision="int8", threads=1), LIMITS, silent)


class TestBuild:
    """From configuration to engine, in every precision."""

    def build(self, **options: object) -> Engine:
        config = EngineConfig(threads=1, **options)  # type: ignore[arg-type]
        return build_bert(config)

    def test_bf16_is_close_to_fp32(self, reference: Engine) -> None:
        """On any CPU: where there are no bf16 instructions, linear layers multiply in fp32."""
        engine = self.build(precision="bf16")
        batch = random_batch([5, 1, 30, 30, 2])
        check_close(engine.run(batch).arrays["embeddings"], reference.run(batch).arrays["embeddings"], torch.bfloat16)
        assert engine.info.precision == "bf16"
        assert engine.memory().weight_bytes == engine.info.weight_bytes

    @pytest.mark.parametrize("cpu_kernels", CONFIGURABLE)
    def test_int8_is_close_to_fp32(self, reference: Engine, cpu_kernels: str) -> None:
        engine = self.build(precision="int8", cpu_kernels=cpu_kernels)
        batch = random_batch([5, 1, 30, 30, 2])
        check_close(engine.run(batch).arrays["embeddings"], reference.run(batch).arrays["embeddings"], tolerance=INT8)
        assert engine.info.precision == "int8"
        assert not engine.info.unplanned_ops
        alone = engine.run(cut(batch, 2)).arrays["embeddings"]
        check_close(alone[0], engine.run(batch).arrays["embeddings"][2], tolerance=SAME_ENGINE)

    @pytest.mark.parametrize("precision", [choice.precision for choice in list_candidates(plain_backend(CPU))])
    def test_a_text_alone_and_in_any_batch_is_the_same_to_the_bit(self, precision: Precision) -> None:
        """In whatever `auto` may choose here; by the compiled kernels, without which equal bits are luck."""
        chosen = ChosenPrecision(((LIMITS.max_batch_tokens, precision),), "fast", problem="it was told to")
        engine = build_bert(EngineConfig(threads=1), chosen=chosen)
        if engine.info.kernels == "torch":
            pytest.skip("no kernels can be compiled here")
        assert (engine.info.precision, engine.info.chosen) == (precision, chosen)
        batch = random_batch([5, 1, 100, 30, 30, 2, 64, 17, 128])
        together = engine.run(batch).arrays["embeddings"].copy()
        for index in range(batch.num_seqs):
            assert np.array_equal(engine.run(cut(batch, index)).arrays["embeddings"][0], together[index])

    def test_nothing_chosen_yet_is_chosen_in_the_process(self) -> None:
        engine = self.build(accuracy="strict", cpu_kernels="torch")
        chosen = engine.info.chosen
        assert chosen is not None and [each.precision for each in chosen.candidates][-1] == "int8"
        assert chosen.candidates[0].accuracy.agreement == 1
        assert chosen.candidates[-1].judged_on == "128 random sequences"
        assert (engine.info.precision,) == chosen.used
        assert engine.memory().weight_bytes == engine.info.weight_bytes

    def test_each_size_in_what_was_chosen_for_it(self) -> None:
        chosen = ChosenPrecision(((16, "fp32"), (512, "int8")), "fast", problem="it was told to")
        config = EngineConfig(threads=1, precision="auto_per_bucket", memory_cap_mb=50)
        engine = build_bert(config, chosen=chosen)
        assert isinstance(engine, AdaptiveEngine)
        for name, batch in (("fp32", random_batch([9, 7])), ("int8", random_batch([9, 9]))):
            alone = engine.engines[name].run(batch).arrays["embeddings"].copy()
            assert np.array_equal(engine.run(batch).arrays["embeddings"], alone)
        assert engine.info.activation_bytes <= 50 * 2**20
        assert engine.memory().weight_bytes == sum(each.info.weight_bytes for each in engine.engines.values())

    def test_kernels_that_are_not_to_be_had_are_refused_with_the_remedy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(library, "list_isas", list)
        with pytest.raises(UnusableConfig, match=r"cpu_kernels avx2: this CPU has no avx2.*Set cpu_kernels to auto"):
            self.build(cpu_kernels="avx2")

    def test_cap_of_the_configuration_reaches_the_engine(self, program: Program) -> None:
        cap_mb = peak_bytes(program, LARGEST) / 2**21
        engine = self.build(precision="fp32", memory_cap_mb=cap_mb, cpu_kernels="torch")
        assert engine.info.max_batch_tokens < LIMITS.max_batch_tokens
        assert engine.info.activation_bytes <= cap_mb * 2**20
        engine.warmup(silent)
        assert engine.memory().arena_reserved_bytes <= cap_mb * 2**20

    def test_reference_is_the_module(self) -> None:
        engine = self.build(kind="reference", precision="fp32")
        assert (engine.info.kind, engine.info.outputs) == ("reference", (EMBEDDINGS,))
        assert np.isfinite(engine.run(make_batch([1])).arrays["embeddings"]).all()


def test_inputs_that_outgrow_their_memory_leave_nothing_stale(program: Program, reference: Engine) -> None:
    """What was bound to a shape holds addresses; a longer batch in between moves the inputs."""
    engine = make_planned(program)
    small, large = random_batch([5, 3], seed=1), random_batch([100, 90, 120], seed=2)
    for batch in (small, large, small, random_batch([5, 3], seed=3), large):
        check_close(engine.run(batch).arrays["embeddings"], reference.run(batch).arrays["embeddings"])
