"""The dynamic programme against all divisions there are."""

from collections.abc import Iterator
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.batchers.partition import Costs, Lengths, ReadCosts, partition

MAX_SEQLEN = 6
MAX_SEQS = 7


@st.composite
def rising_costs(draw: st.DrawFn) -> Costs:
    """By (num_seqs, longest), counted from 1; no larger batch is cheaper."""
    size = MAX_SEQS * MAX_SEQLEN
    drawn = draw(st.lists(st.integers(1, 1000), min_size=size, max_size=size))
    table = np.array(drawn, float).reshape(MAX_SEQS, MAX_SEQLEN)
    return np.maximum.accumulate(np.maximum.accumulate(table, 0), 1)


def read_from(table: Costs) -> ReadCosts:
    return lambda num_seqs, seqlens: table[np.ix_(num_seqs - 1, seqlens - 1)].T


def linear(num_seqs: Lengths, seqlens: Lengths) -> Costs:
    """Ten, and one for each token."""
    return 10.0 + np.outer(seqlens, num_seqs)


def list_divisions(items: list[int]) -> Iterator[list[list[int]]]:
    """All of a set, neighbours or not."""
    if not items:
        yield []
        return
    for rest in list_divisions(items[1:]):
        yield [[items[0]], *rest]
        for place in range(len(rest)):
            yield [*rest[:place], [items[0], *rest[place]], *rest[place + 1 :]]


@given(
    st.lists(st.integers(1, MAX_SEQLEN), max_size=MAX_SEQS),
    rising_costs(),
    st.integers(1, MAX_SEQS),
    st.integers(MAX_SEQLEN, 4 * MAX_SEQLEN),
)
@settings(deadline=None, max_examples=60)
def test_no_division_is_cheaper(lengths: list[int], table: Costs, max_seqs: int, max_tokens: int) -> None:
    def cost(division: list[list[int]]) -> float:
        return sum(table[len(batch) - 1, max(batch) - 1] for batch in division)

    lengths.sort()
    found = partition(np.array(lengths), read_from(table), max_batch_requests=max_seqs, max_batch_tokens=max_tokens)
    allowed = [
        cost(division)
        for division in list_divisions(lengths)
        if all(len(batch) <= max_seqs and len(batch) * max(batch) <= max_tokens for batch in division)
    ]
    assert cost([[lengths[place] for place in batch] for batch in found]) == min(allowed)


@given(st.lists(st.integers(1, 500), max_size=300), st.integers(1, 64), st.integers(500, 4096))
@settings(deadline=None)
def test_every_sequence_is_in_one_batch_within_the_limits(lengths: list[int], max_seqs: int, max_tokens: int) -> None:
    lengths.sort()
    batches = partition(np.array(lengths, int), linear, max_batch_requests=max_seqs, max_batch_tokens=max_tokens)
    assert [place for batch in batches for place in batch] == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= max_seqs
        assert len(batch) * lengths[batch[-1]] <= max_tokens


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ([2, 2, 2, 90, 90], [3, 2]),  # padding would cost more than a step
        ([8, 8, 9, 10, 10], [5]),  # and here less
        ([7], [1]),
        ([1] * 100, [100]),
    ],
)
def test_what_one_would_do_by_hand(lengths: list[int], sizes: list[int]) -> None:
    batches = partition(np.array(lengths), linear, max_batch_requests=512, max_batch_tokens=4096)
    assert [len(batch) for batch in batches] == sizes
    assert [batch.stop for batch in batches] == list(accumulate(sizes))


def test_a_sequence_over_the_limit_is_alone() -> None:
    batches = partition(np.array([30, 30, 200]), linear, max_batch_requests=8, max_batch_tokens=100)
    assert [len(batch) for batch in batches] == [2, 1]


def test_many_lengths_are_read_in_blocks_that_fit_together() -> None:
    """Costs are read for 64 lengths at a time, and for as few numbers of sequences as these need."""
    shapes = []

    def read(num_seqs: Lengths, seqlens: Lengths) -> Costs:
        shapes.append((len(num_seqs), len(seqlens)))
        return linear(num_seqs, seqlens)

    lengths = np.arange(1, 201)
    batches = partition(lengths, read, max_batch_requests=512, max_batch_tokens=650)
    assert shapes == [(200, 64), (10, 64), (5, 64), (3, 8)]
    assert all(len(batch) * lengths[batch[-1]] <= 650 for batch in batches)
