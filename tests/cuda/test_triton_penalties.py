"""Penalties by counts that stay on the device: those of a history; and compiled."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import open as runtime_open
from runtime.backends.cuda.penalties import penalise
from runtime.batch import ArraySpec, Batch, Counted, History, Output
from runtime.config import EngineConfig
from runtime.engine import EngineError, EngineInfo
from runtime.engines.token_counts import TokenCounts
from runtime.kv_cache.layout import KVLayout
from runtime.limits import BatchLimits
from runtime.open import give_caches
from runtime.sampling import adjust_logits, sample
from server.wire.generation import GenerationParams
from tests.cuda.compiling import compile_kernel, compile_launch, recorded
from tests.cuda.cuda_cases import every_capability
from tests.cuda.interpreting import interpreted
from tests.generation.continuous import Continuous
from tests.kernels.kernel_cases import random_tensor
from tests.kernels.test_sampling import make_sampling
from tests.tolerances import check_close

CPU = torch.device("cpu")
VOCAB_SIZE = 40
Asked = tuple[list[int], GenerationParams, int]
"""A prompt, how it is answered, and how many steps after the one before it."""


class FollowingDecoder:
    """What follows a token is a row of a table: an engine without a cache. Mutable: the counts, and how many steps of
    several sequences it has run. Of these every `fails`-th fails, by turns before and after its tokens are counted."""

    def __init__(self, device: torch.device, num_counters: int, fails: int = 0) -> None:
        self.table, self.fails, self.num_steps = random_tensor(VOCAB_SIZE, VOCAB_SIZE).to(device), fails, 0
        self.counts = TokenCounts(num_counters, VOCAB_SIZE, 200, device, penalise) if num_counters else None
        outputs = (ArraySpec("logits", "float32", ("num_logits", VOCAB_SIZE)),)
        self.info = EngineInfo("null", "none", "", "cpu", 1, outputs, num_blocks=64, num_counters=num_counters)

    def run(self, batch: Batch) -> Output:
        assert batch.paging is not None
        self.num_steps += batch.num_seqs > 1
        is_failing = batch.num_seqs > 1 and self.fails > 0 and self.num_steps % self.fails == 0
        if is_failing and self.num_steps % 2:
            raise EngineError("it was told to fail")
        logits = self.table[batch.arrays["input_ids"][batch.paging.logit_rows]]
        count = None if self.counts is None else self.counts.penalise
        tokens = sample(logits, batch.paging.sampling, penalise=count)
        if is_failing:
            raise EngineError("it was told to fail")
        return Output({}, tokens)


def answer(engine: FollowingDecoder, asked: Sequence[Asked]) -> list[dict[int, list[int]]]:
    """What each is told, who joins after so many steps; blocks run out, and who gives way begins again."""
    run = Continuous(engine=engine, num_blocks=12, max_batch_requests=8)  # type: ignore[arg-type]
    heard = []
    for prompt, params, num_steps in asked:
        for _ in range(num_steps):
            run.step()
        heard.append(run.start(prompt, params))
    run.run()
    assert all(each.error is None for each in heard)
    return [each.answers for each in heard]


PENALTIES: list[dict[str, Any]] = [
    {"frequency_penalty": 0.7, "presence_penalty": 0.4},
    {"repetition_penalty": 1.4},
    {"repetition_penalty": 0.8, "frequency_penalty": -0.3},
    {},
]


def ask(length: int, num_answers: int = 1, **penalties: float) -> GenerationParams:
    """Drawn by the same numbers each time where there are several answers, which would else be the same."""
    temperature = 0.7 if num_answers > 1 else 0.0
    return GenerationParams(length, temperature=temperature, seed=length, num_sequences=num_answers, **penalties)  # type: ignore[arg-type]


SCRIPT: list[Asked] = [
    ([token, 2 * token, token], ask(9 + 5 * token, 1 + token % 2, **PENALTIES[token % 4]), wait)
    for token, wait in enumerate([0, 2, 0, 5, 1, 0, 3, 9, 0])
]


def test_answers_are_those_of_a_history(device: torch.device) -> None:
    """With fewer counters than there are answers, which take one another's; each alone as among all."""
    expected = answer(FollowingDecoder(CPU, 0), SCRIPT)
    engine = FollowingDecoder(device, 3)
    assert answer(engine, SCRIPT) == expected
    assert engine.counts is not None and engine.counts.counts is not None
    for (prompt, params, _), together in zip(SCRIPT[:3], expected, strict=False):
        assert answer(FollowingDecoder(device, 3), [(prompt, params, 0)]) == [together]
    plain = [(prompt, ask(params.max_tokens, params.num_sequences), wait) for prompt, params, wait in SCRIPT]
    assert answer(FollowingDecoder(CPU, 0), plain) != expected


def test_a_step_that_failed_is_counted_once(device: torch.device) -> None:
    """Whether it had been counted before it failed or not."""
    asked = [([token, 7], ask(25, frequency_penalty=0.9), 0) for token in range(4)]
    engine = FollowingDecoder(device, 4, fails=5)
    assert answer(engine, asked) == answer(FollowingDecoder(CPU, 0), asked)
    assert engine.num_steps > 20


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=20),
            st.builds(
                lambda length, answers, penalties: ask(length, answers, **penalties),
                st.integers(1, 20),
                st.integers(1, 2),
                st.sampled_from(PENALTIES),
            ),
            st.integers(0, 6),
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 4),
)
def test_whoever_joins_and_leaves(asked: list[Asked], num_counters: int) -> None:
    expected = answer(FollowingDecoder(CPU, 0), asked)
    with interpreted():
        assert answer(FollowingDecoder(CPU, num_counters), asked) == expected
        for (prompt, params, _), together in zip(asked, expected, strict=True):
            assert answer(FollowingDecoder(CPU, num_counters), [(prompt, params, 0)]) == [together]


def test_only_named_rows_and_counters_change(device: torch.device) -> None:
    """What is forbidden stays so, and what is no number shows."""
    counts = TokenCounts(3, VOCAB_SIZE, 100, device, penalise)
    logits = random_tensor(4, VOCAB_SIZE)
    logits[2, 5], logits[2, 6], before = -torch.inf, torch.nan, logits.clone()
    sampling = make_sampling(4, repetition_penalty=2.0, presence_penalty=[0, 0, 0.5, 9], frequency_penalty=0.25)
    ids = np.array([5, 6, 7, 7, 7, 8])
    counted = Counted(
        *np.array([[2], [1]]), np.array([1]), np.ones(6, np.int64), ids, np.array([0, 1, 0, 1, 1, 0], bool)
    )
    found = logits.to(device)
    with torch.inference_mode():
        adjust_logits(found, replace(sampling, counted=counted), counts.penalise)
        assert counts.counts is not None and counts.counts.dtype == torch.int16
        assert not counts.counts[[0, 2]].any()
        assert counts.counts[1, [5, 6, 7, 8, 9]].tolist() == [1, 2, 5, 1, 0]
    found = found.cpu()
    halved = torch.where(before[2, 7:9] > 0, before[2, 7:9] / 2, before[2, 7:9] * 2) - torch.tensor([1.0, 0.0])
    check_close(found[2, 7:9], halved)
    assert found[2, 5] == -torch.inf and found[2, 6].isnan()
    before[2, 5:9] = found[2, 5:9] = 0
    assert torch.equal(found, before)


def test_rows_get_what_a_history_gives_them(device: torch.device) -> None:
    """To the last bit: an answer may lose its counter to another, and goes on."""
    counts, logits = TokenCounts(1, VOCAB_SIZE, 100, device, penalise), random_tensor(1, VOCAB_SIZE)
    ids, nothing = np.array([3, 3, *range(30)]), np.zeros(0, np.int64)
    rows, is_generated = np.zeros(len(ids), np.int64), np.arange(len(ids)) < 20
    sampling = make_sampling(1, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.25)
    history = replace(sampling, history=History(rows, ids, is_generated))
    counted = replace(sampling, counted=Counted(rows[:1], rows[:1], nothing, rows, ids, is_generated))
    expected, found = logits.clone(), logits.to(device)
    with torch.inference_mode():
        adjust_logits(expected, history)
        adjust_logits(found, counted, counts.penalise)
    assert torch.equal(found.cpu(), expected)


def test_a_cache_leaves_room_for_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of as many sequences as a step may have, where there are kernels for them."""
    layout, limits = KVLayout(2, 2, 16), BatchLimits(64, 9, 10_000, 9)
    inner = SimpleNamespace(info=replace(FollowingDecoder(CPU, 0).info, num_blocks=0), largest=limits.largest())

    def open_decoder() -> EngineInfo:
        config = EngineConfig.model_validate({"kv_cache": {"budget_mb": 20}})
        return give_caches([inner], [layout], config, limits, 0).info  # type: ignore[list-item]

    without = open_decoder()
    monkeypatch.setattr(runtime_open, "find_penalise", lambda device: penalise)
    monkeypatch.setattr(TokenCounts, "planned_bytes", 5 * layout.block_bytes)
    found = open_decoder()
    assert (without.num_counters, found.num_counters) == (0, 9)
    assert without.num_blocks - found.num_blocks == 5
    assert (without.counter_bytes, found.counter_bytes) == (0, 5 * layout.block_bytes)


def test_long_answers_are_counted_in_more_bits() -> None:
    found = [TokenCounts(2, 3, length, CPU, penalise).planned_bytes for length in (16_000, 17_000)]
    assert found == [2 * 3 * 2, 2 * 3 * 4]


@pytest.mark.slow
@every_capability
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32], ids=str)
def test_compiles(capability: int, dtype: torch.dtype) -> None:
    index = torch.zeros(2, dtype=torch.int64)
    with recorded() as launches:
        penalise(torch.zeros(4, 50000), index, torch.zeros(3, 50000, dtype=dtype), index, torch.ones(3, 2))
    (launch,) = launches
    compile_launch(launch, capability).check()
    ptx = compile_kernel(launch, capability).asm["ptx"]
    assert "div.rn.f32" in ptx and "div.full" not in ptx, "a history's logits are divided otherwise"
