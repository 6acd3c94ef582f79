"""The arithmetic of answers."""

import base64
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.info import ModelInfo
from server.errors import InvalidAnswer, InvalidField
from server.http.api.vectors import encode_base64
from server.http.endpoint import check_finite
from server.tasks.classify import compute_scores, compute_sigmoid, compute_softmax, rank_labels
from server.tasks.embed import check_dimensions, shorten
from server.tasks.rerank import compute_cosines, rank_scores, score_logits, suits
from server.tasks.vector_types import scale_rows
from server.wire.job import Ragged

LOGITS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.floats(-(2.0**100), 2.0**100, width=32)
)


def make_info(*, num_labels: int = 3, problem_type: str = "single_label_classification") -> ModelInfo:
    labels = {index: f"label{index}" for index in range(num_labels)}
    return ModelInfo("x", "classify", 10, 1, 10, num_labels, id2label=labels, problem_type=problem_type)


@given(LOGITS)
def test_softmax_never_overflows(logits: np.ndarray) -> None:
    scores = compute_softmax(logits)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all() and (scores >= 0).all()
    np.testing.assert_allclose(scores.sum(axis=1), 1.0, rtol=1e-5)


@given(LOGITS)
def test_sigmoid_never_overflows(logits: np.ndarray) -> None:
    scores = compute_sigmoid(logits)
    assert scores.dtype == np.float32
    assert ((scores >= 0) & (scores <= 1)).all()
    np.testing.assert_allclose(compute_sigmoid(-logits) + scores, 1.0, rtol=1e-6)


def test_known_values() -> None:
    # The row that gives NaN where the entry of largest absolute value is subtracted.
    np.testing.assert_allclose(compute_softmax(np.float32([[-100.0, 1.0]])), [[0.0, 1.0]], atol=1e-30)
    np.testing.assert_allclose(compute_softmax(np.float32([[0.0, np.log(3.0)]])), [[0.25, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(
        compute_sigmoid(np.float32([[0.0, np.log(3.0), -30.0]])), [[0.5, 0.75, 9.3576e-14]], 1e-4
    )


def test_scores_follow_the_problem_type() -> None:
    logits = np.float32([[1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(compute_scores(logits, make_info()), compute_softmax(logits))
    multi = make_info(problem_type="multi_label_classification")
    np.testing.assert_array_equal(compute_scores(logits, multi), compute_sigmoid(logits))
    np.testing.assert_array_equal(
        compute_scores(logits[:, :1], make_info(num_labels=1)), compute_sigmoid(logits[:, :1])
    )


def test_labels_are_ranked_and_ties_keep_their_order() -> None:
    ranked = rank_labels(np.float32([[0.25, 0.5, 0.25], [0.0, 0.25, 0.75]]), make_info())
    assert [[item["label"] for item in row] for row in ranked] == [
        ["label1", "label0", "label2"],
        ["label2", "label1", "label0"],
    ]
    assert ranked[0][0] == {"score": 0.5, "label": "label1"}


def test_labels_without_names() -> None:
    assert rank_labels(np.float32([[1.0, 0.0]]), make_info(num_labels=1))[0][1]["label"] == "LABEL_1"


@given(hnp.arrays(np.float32, (4, 6), elements=st.floats(-(2.0**60), 2.0**60, width=32)), st.integers(1, 5))
def test_shortened_embeddings_have_length_one(values: np.ndarray, dimensions: int) -> None:
    short = scale_rows(shorten(values, dimensions))
    assert short.shape == (4, dimensions) and short.dtype == np.float32 and short.flags.c_contiguous
    lengths = np.linalg.norm(values[:, :dimensions].astype(np.float64), axis=1)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1)[lengths > 1e-6], 1.0, rtol=1e-5)
    assert np.isfinite(short).all()


def test_embeddings_are_left_alone_without_dimensions() -> None:
    values = np.float32([[3.0, 4.0]])
    assert shorten(values, None) is values


def test_all_dimensions_change_nothing() -> None:
    """Also where vectors have another length than 1."""
    values = np.float32([[3.0, 4.0]])
    assert shorten(values, 2) is values


def test_base64_is_little_endian_float32() -> None:
    row = np.float32([1.5, -2.25, 1e-20])
    assert np.frombuffer(base64.b64decode(encode_base64(row)), "<f4").tolist() == row.tolist()
    assert encode_base64(row.astype(">f4")) == encode_base64(row)


def test_dimensions_over_the_models_own() -> None:
    check_dimensions(None, make_info())
    check_dimensions(3, make_info())
    with pytest.raises(InvalidField, match="dimensions is 4"):
        check_dimensions(4, make_info())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_with_its_rows(bad: float) -> None:
    values = np.zeros((9, 2), np.float32)
    check_finite(Ragged(values))
    values[2:, 1] = bad
    with pytest.raises(InvalidAnswer, match=r"7 of 9 inputs \(index 2, 3, 4, 5, 6, \.\.\.\)"):
        check_finite(Ragged(values))


def test_activation_of_the_directory_wins() -> None:
    """A cross-encoder's own activation, whatever the problem type; regression's scores are its logits."""
    logits = np.array([[0.5, -2.0, 4.0]], dtype=np.float32)
    for info in (make_info(problem_type="regression"), replace(make_info(), activation="identity")):
        np.testing.assert_array_equal(compute_scores(logits, info), logits)
    for problem_type in ("single_label_classification", "regression"):
        info = replace(make_info(problem_type=problem_type), activation="sigmoid")
        np.testing.assert_array_equal(compute_scores(logits, info), compute_sigmoid(logits))
    one = make_info(num_labels=1)
    np.testing.assert_array_equal(compute_scores(logits[:, :1], one), compute_sigmoid(logits[:, :1]))
    np.testing.assert_array_equal(compute_scores(logits[:, :1], replace(one, activation="identity")), logits[:, :1])


def test_a_rankers_scales() -> None:
    logits = np.float32([[0.0], [-3.0], [2.0]])
    info = make_info(num_labels=1)
    np.testing.assert_array_equal(score_logits(logits, info, "raw"), logits[:, 0])
    plain = replace(info, activation="identity")
    np.testing.assert_array_equal(score_logits(logits, plain, "sigmoid"), compute_sigmoid(logits)[:, 0])
    np.testing.assert_array_equal(score_logits(logits, plain, "own"), logits[:, 0])
    np.testing.assert_array_equal(score_logits(logits, info, "own"), compute_sigmoid(logits)[:, 0])


def test_who_can_rank() -> None:
    assert suits(make_info(num_labels=1)) and not suits(make_info(num_labels=2))
    assert suits(replace(make_info(num_labels=384), task="embed"))


@given(hnp.arrays(np.float32, (5, 4), elements=st.floats(-(2.0**20), 2.0**20, width=32)))
def test_cosines_are_row_by_row(values: np.ndarray) -> None:
    queries, documents = values[:1], values[1:]
    cosines = compute_cosines(queries, documents)
    assert cosines.shape == (4,) and cosines.dtype == np.float32
    each = [compute_cosines(queries, documents[index : index + 1])[0] for index in range(4)]
    np.testing.assert_allclose(cosines, each, rtol=1e-6)
    assert (np.abs(cosines) <= 1 + 1e-5).all()
    np.testing.assert_array_equal(compute_cosines(np.repeat(queries, 4, axis=0), documents), cosines)


def test_known_cosines() -> None:
    documents = np.float32([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    expected = [1.0, 0.0, -1.0, 0.5**0.5, 0.0]
    np.testing.assert_allclose(compute_cosines(np.float32([[3.0, 0.0]]), documents), expected, rtol=1e-6)


def test_equal_scores_keep_their_order() -> None:
    assert rank_scores(np.float32([0.5, 0.75, 0.5, 1.0, 0.75])) == [3, 1, 4, 0, 2]
