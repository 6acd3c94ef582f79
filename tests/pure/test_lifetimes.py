"""Sizes as formulas, the lower bound of any plan, and the buckets of shapes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.memory.lifetimes import (
    ALIGNMENT,
    BatchShape,
    Formula,
    Lifetime,
    TensorLife,
    live_peak,
    round_shape,
    size_lifetimes,
)
from tests.pure.random_graphs import lifetimes

TOKENS = Formula(((1, 1, 0, 0),))
SEQS_PLUS_ONE = Formula(((1, 0, 1, 0), (1, 0, 0, 0)))
SHAPE = BatchShape(100, 7, 31)

shapes = st.builds(
    BatchShape, st.integers(1, 20_000), st.integers(1, 2_000), st.integers(1, 9_000), st.integers(0, 2_000)
)
formulas = st.builds(
    Formula,
    st.lists(st.tuples(*[st.integers(0, 50)] + [st.integers(0, 2)] * 3), max_size=4).map(tuple),
)


def test_formula_is_the_polynomial_it_says() -> None:
    scores = Formula(((12, 1, 0, 1), (5, 0, 2, 0), (3, 0, 0, 0)))
    assert scores.evaluate(SHAPE) == 12 * 100 * 31 + 5 * 7 * 7 + 3
    assert str(scores) == "12*num_tokens*max_seqlen + 5*num_seqs*num_seqs + 3"


def test_formula_shows_a_coefficient_of_one_only_where_it_stands_alone() -> None:
    assert str(SEQS_PLUS_ONE) == "num_seqs + 1"


def test_formula_of_nothing() -> None:
    """As an op's result that has no elements."""
    assert str(Formula(())) == "0"
    assert Formula(()).times(TOKENS).evaluate(SHAPE) == 0


@given(formulas, formulas, shapes)
@settings(deadline=None)
def test_product_of_formulas_evaluates_to_the_product(one: Formula, other: Formula, shape: BatchShape) -> None:
    assert one.times(other).evaluate(shape) == one.evaluate(shape) * other.evaluate(shape)


@given(formulas, shapes, shapes)
@settings(deadline=None)
def test_dominating_shape_needs_no_less(formula: Formula, shape: BatchShape, other: BatchShape) -> None:
    larger = BatchShape(*(max(pair) for pair in zip(shape, other, strict=True)))
    assert larger.dominates(shape)
    assert formula.evaluate(larger) >= formula.evaluate(shape)


def test_one_larger_number_is_enough_not_to_be_dominated() -> None:
    assert SHAPE.dominates(SHAPE)
    for index in range(3):
        larger = BatchShape(*(number + (place == index) for place, number in enumerate(SHAPE)))
        assert not SHAPE.dominates(larger)


def test_sizes_are_aligned() -> None:
    lives = [TensorLife("a", 0, 3, TOKENS), TensorLife("b", 1, 2, Formula.constant(ALIGNMENT))]
    assert size_lifetimes(lives, SHAPE) == [Lifetime(0, 3, 2 * ALIGNMENT), Lifetime(1, 2, ALIGNMENT)]


def test_live_peak_counts_both_ends_of_a_life() -> None:
    assert live_peak([Lifetime(0, 1, 64), Lifetime(1, 2, 128), Lifetime(2, 3, 256)]) == 128 + 256
    assert live_peak([Lifetime(0, 1, 64), Lifetime(2, 3, 64)]) == 64
    assert live_peak([]) == 0


@given(lifetimes())
@settings(deadline=None)
def test_live_peak_is_the_largest_sum_of_any_step(lives: list[Lifetime]) -> None:
    by_step = [sum(life.num_bytes for life in lives if life.start <= step <= life.end) for step in range(len(lives))]
    assert live_peak(lives) == max(by_step)


@given(shapes, shapes)
@settings(deadline=None)
def test_bucket_is_never_below_and_at_most_an_eighth_and_eight_above(shape: BatchShape, other: BatchShape) -> None:
    largest = BatchShape(*(max(pair) for pair in zip(shape, other, strict=True)))
    for number, rounded, limit in zip(shape, round_shape(shape, largest), largest, strict=True):
        assert number <= rounded <= number + number / 8 + 8
        assert rounded <= limit


@given(shapes, shapes)
@settings(deadline=None)
def test_bucket_of_a_bucket_is_itself(shape: BatchShape, largest: BatchShape) -> None:
    bucket = round_shape(shape, largest)
    assert round_shape(bucket, largest) == bucket


def test_buckets_are_few() -> None:
    """8 per power of two: plans are cached, so there must not be one for each length."""
    largest = BatchShape(4096, 512, 512)
    assert len({round_shape(BatchShape(n, 1, 1), largest).num_tokens for n in range(1, 4097)}) <= 8 * 8


def test_edges_of_buckets() -> None:
    largest = BatchShape(1 << 20, 1 << 20, 1 << 20)
    for number, bucket in (
        (1, 8),
        (8, 8),
        (9, 16),
        (70, 72),
        (128, 128),
        (129, 144),
        (384, 384),
        (385, 416),
        (1000, 1024),
    ):
        assert round_shape(BatchShape(number, 1, 1), largest).num_tokens == bucket
