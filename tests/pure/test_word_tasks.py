"""Words for masked places and answers' spans: against everything tried one by one; and rows of logits in steps."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.batch import ArraySpec, find_middles
from runtime.engine import EngineInfo
from runtime.engines.null import NullEngine
from server.engine.batchers.batcher import StepLimits, StepResult
from server.engine.batchers.packed import PackedBatcher
from server.engine.batchers.packing import pack, pack_sequences
from server.engine.cost_model import CostModel
from server.errors import EngineFailure
from server.tasks import fill_mask
from server.tasks.question_answering import Answer, AnswerReader, find_spans
from server.tasks.registry import TASKS
from server.text.located import Window
from server.wire.job import Job, Ragged, Result, TokenSequence, join_rows, write_inputs
from server.wire.messages import read_job, write_job
from server.wire.result_stream import ResultStream
from tests.pure.fake_requests import make_sequence

probabilities = st.sampled_from([0.0, 0.125, 0.25, 0.5])
"""Few different ones, so that there are equal ones."""


@given(st.data(), st.integers(1, 9), st.integers(1, 12), st.integers(1, 60))
@settings(deadline=None)
def test_spans_are_the_best_of_all(data: st.DataObject, num_tokens: int, max_answer_len: int, count: int) -> None:
    starts, ends = (
        np.array(data.draw(st.lists(probabilities, min_size=num_tokens, max_size=num_tokens)), np.float32)
        for _ in range(2)
    )
    is_text = np.array(data.draw(st.lists(st.booleans(), min_size=num_tokens, max_size=num_tokens)))
    possible = [
        (first, last, float(starts[first] * ends[last]))
        for first, last in itertools.combinations_with_replacement(range(num_tokens), 2)
        if is_text[first] and is_text[last] and last - first < max_answer_len
    ]
    possible.sort(key=lambda span: (-span[2], span[0], span[1]))
    assert [tuple(span) for span in find_spans(starts, ends, is_text, max_answer_len, count)] == possible[:count]


def make_window(text: str, starts: list[int], ends: list[int], words: list[int], *, num_special: int = 1) -> Window:
    """Special tokens, and then the text's."""
    zeros = [0] * num_special
    is_special = np.arange(num_special + len(starts)) < num_special
    return Window(
        TokenSequence(np.zeros(len(is_special), np.int32)),
        text,
        np.array([*zeros, *starts]),
        np.array([*zeros, *ends]),
        is_special,
        is_special,
        is_special,
        np.array([*zeros, *words]),
    )


def read(reader: AnswerReader, windows: list[Window], rows: list[np.ndarray]) -> list[Answer]:
    reading = reader.read(windows, rows)
    while True:
        try:
            next(reading)
        except StopIteration as end:
            found: list[Answer] = end.value
            return found


def test_the_first_token_stands_for_no_answer_and_takes_part_in_the_softmax() -> None:
    window = make_window("ab", [0], [2], [0], num_special=3)
    logits = np.log(np.array([[3, 1], [50, 50], [50, 50], [1, 1]], np.float32))
    (best,) = read(AnswerReader(), [window], [logits])
    assert best == {"score": pytest.approx(1 / 4 * 1 / 2), "start": 0, "end": 2, "answer": "ab"}
    none, other = read(AnswerReader(top_k=2, takes_none=True), [window], [logits])
    assert none == {"score": pytest.approx(3 / 4 * 1 / 2), "start": 0, "end": 0, "answer": ""}
    assert other == best


def test_answers_of_the_same_words_are_added_up_over_windows_and_no_answer_is_the_least_likely() -> None:
    window = make_window("Ab ab", [0, 1, 3], [1, 2, 5], [0, 0, 1])
    first = np.array([[0, 0], [9, 0], [0, 9], [0, 0]], np.float32)
    second = np.array([[0, 0], [0, 0], [0, 0], [9, 9]], np.float32)
    found = read(AnswerReader(top_k=9, takes_none=True), [window, window], [first, second])
    assert (found[0]["answer"], found[0]["start"]) == ("Ab", 0)
    assert float(found[0]["score"]) > 1.9
    none = next(each for each in found if not each["answer"])
    assert float(none["score"]) < 1e-6
    apart = read(AnswerReader(top_k=9, aligns=False), [window], [first])
    assert {"A", "b", "Ab"} <= {each["answer"] for each in apart}


def test_a_text_without_tokens_has_no_answers() -> None:
    assert read(AnswerReader(), [make_window(" ", [], [], [])], [np.zeros((1, 2), np.float32)]) == []


@given(st.integers(1, 1000), st.integers(1, 1100), st.integers(1, 2000), st.integers(0, 2**31))
@settings(deadline=None)
def test_the_largest_are_picked_in_order(size: int, count: int, num_different: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, num_different, size).astype(np.float32)
    expected = np.argsort(-values, kind="stable")[:count]
    np.testing.assert_array_equal(fill_mask.pick_largest(values, count), expected)


@pytest.mark.parametrize(("num_values", "count"), [(5_000, 9), (5_000, 10), (5_120, 3), (512, 1)])
def test_the_largest_of_many(num_values: int, count: int) -> None:
    """More than are looked at one by one, and some of them equal."""
    values = np.random.default_rng(num_values + count).integers(0, 2_000, num_values).astype(np.float32)
    expected = np.argsort(-values, kind="stable")[:count]
    np.testing.assert_array_equal(fill_mask.pick_largest(values, count), expected)


logits = st.lists(st.sampled_from([-3.0, 0.0, 0.5, 2.0]), min_size=7, max_size=7)


@given(st.lists(logits, min_size=1, max_size=4), st.integers(1, 9), st.none() | st.sets(st.integers(0, 6), min_size=1))
@settings(deadline=None)
def test_words_are_the_most_probable_of_all(rows: list[list[float]], top_k: int, targets: set[int] | None) -> None:
    values = np.array(rows, np.float32)
    splits = np.array([0, 0, len(rows)], np.int32)
    params = fill_mask.FillMaskParams(top_k, None if targets is None else tuple(targets))
    found = fill_mask.reduce({"masked_logits": Ragged(values, splits)}, params)
    assert found["token_ids"].lengths.tolist() == [0, len(rows)]
    for row, ids, scores in zip(values, found["token_ids"].row(1), found["scores"].row(1), strict=True):
        wanted = range(7) if targets is None else tuple(targets)
        expected = sorted(wanted, key=lambda token_id: -row[token_id])[:top_k]
        assert ids.tolist() == expected
        np.testing.assert_allclose(scores, np.exp(row[expected]) / np.exp(row).sum(), rtol=1e-5)


def test_what_is_no_number_is_kept() -> None:
    values = np.array([[0.0, np.nan, 1.0]], np.float32)
    found = fill_mask.reduce({"masked_logits": Ragged(values, np.array([0, 1], np.int32))}, fill_mask.FillMaskParams(2))
    assert np.isnan(found["scores"].values).all()


def make_job(seqlens: list[int], places: list[list[int]]) -> Job:
    inputs = write_inputs([make_sequence(seqlen) for seqlen in seqlens])
    inputs["logit_rows"] = join_rows([np.array(each, np.int32) for each in places])
    return Job("fill_mask", inputs, 30.0, fill_mask.FillMaskParams())


def test_rows_of_logits_are_counted_from_the_batchs_first_token() -> None:
    job = make_job([4, 2, 3], [[0, 3], [], [1]])
    assert pack([(job, 2), (job, 0), (job, 1)]).arrays["logit_rows"].tolist() == [1, 3, 6]
    batch = pack_sequences([make_sequence(1), make_sequence(4)])
    assert batch.arrays["logit_rows"].tolist() == find_middles(batch.cu_seqlens).tolist() == [0, 3]


@given(st.data(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_each_input_gets_the_rows_of_its_own_places(data: st.DataObject, rng: random.Random) -> None:
    """Whatever steps jobs are cut into, and no step has more rows than it may."""
    spec = ArraySpec("masked_logits", "float32", ("num_logits", 3))
    engine = NullEngine(EngineInfo("null", "none", "", "cpu", 1, (spec,)))
    limits = StepLimits(max_batch_tokens=40, max_batch_requests=6, max_wait_s=0.0)
    batcher = PackedBatcher(limits, CostModel(), (spec,), {"fill_mask": lambda arrays, job, rows: arrays})
    told: dict[int, list[Result]] = {}
    asked: list[list[list[int]]] = []
    lengths: list[list[int]] = []
    for number in range(data.draw(st.integers(1, 4))):
        seqlens = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=6))
        places = [sorted(rng.sample(range(n), rng.randint(0, min(n, 6)))) for n in seqlens]
        asked.append(places)
        lengths.append(seqlens)
        stream = ResultStream(lambda rows: None)
        batcher.add(make_job(seqlens, places), stream, 0.0)
        stream.listen(told.setdefault(number, []).append, pytest.fail)
    while (step := batcher.form(0.0)) is not None:
        assert step.batch.num_logits <= limits.max_batch_requests
        batcher.settle(StepResult(step, 0.0, 1.0, engine.run(step.batch), None), 1.0)
        batcher.deliver()
    for number, results in told.items():
        seen = set()
        for result in results:
            for place, row in enumerate(result.rows.tolist()):
                seen.add(row)
                # The null engine tells of each token what it is, where it stands, and its sequence's length.
                expected = [[each + 1, each, lengths[number][row]] for each in asked[number][row]]
                assert result.arrays["masked_logits"].row(place).tolist() == expected
        assert seen == set(range(len(lengths[number])))


def test_targets_cross_the_wire() -> None:
    params = fill_mask.FillMaskParams(3, (5, 2))
    message = write_job(1, replace(make_job([2], [[1]]), params=params))
    assert read_job(message, TASKS["fill_mask"].params).params == params


def test_an_input_of_more_rows_than_a_step_is_refused() -> None:
    batcher = PackedBatcher(
        StepLimits(99, 2, 0.0), CostModel(), (), {name: task.reduce_rows for name, task in TASKS.items()}
    )
    with pytest.raises(EngineFailure, match="3 rows of logits"):
        batcher.add(make_job([5], [[0, 1, 2]]), ResultStream(lambda rows: None), 0.0)
