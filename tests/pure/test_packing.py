"""Sequences end to end."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.batch import INPUTS
from runtime.kv_cache.blocks import SCRATCH_BLOCK
from server.engine.batchers.packing import pack, pack_sequences, pack_tables, sort_by_length
from server.wire.job import Ragged, TokenSequence
from tests.pure.fake_requests import make_job, make_sequence

ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20)
sequences = st.lists(
    st.tuples(ids, st.booleans()).map(
        lambda drawn: TokenSequence(
            np.array(drawn[0], np.int32), np.arange(len(drawn[0]), dtype=np.int32) % 2 if drawn[1] else None
        )
    ),
    min_size=1,
    max_size=10,
)


@given(sequences)
@settings(deadline=None)
def test_batch_holds_each_sequence_between_its_borders(given_sequences: list[TokenSequence]) -> None:
    batch = pack_sequences(given_sequences)
    assert batch.num_seqs == len(given_sequences)
    assert batch.cu_seqlens[0] == 0
    assert batch.cu_seqlens[-1] == batch.num_tokens == sum(sequence.num_tokens for sequence in given_sequences)
    assert batch.max_seqlen == max(sequence.num_tokens for sequence in given_sequences)
    for index, sequence in enumerate(given_sequences):
        span = slice(batch.cu_seqlens[index], batch.cu_seqlens[index + 1])
        types = np.zeros(sequence.num_tokens) if sequence.token_type_ids is None else sequence.token_type_ids
        np.testing.assert_array_equal(batch.arrays["input_ids"][span], sequence.input_ids)
        np.testing.assert_array_equal(batch.arrays["position_ids"][span], np.arange(sequence.num_tokens))
        np.testing.assert_array_equal(batch.arrays["token_type_ids"][span], types)


def test_types_are_those_of_the_contract() -> None:
    batch = pack_sequences([make_sequence(3), make_sequence(1)])
    assert {name: array.dtype for name, array in batch.arrays.items()} == {
        name: np.dtype(INPUTS[name].dtype) for name in batch.arrays
    }
    assert batch.cu_seqlens.dtype == np.int32
    assert type(batch.max_seqlen) is int
    assert batch.seqlens.tolist() == [3, 1]


def test_inputs_of_several_jobs_are_laid_in_the_order_asked_for() -> None:
    """Types of 0 where a job says nothing of them."""
    types = np.array([0, 1, 1], np.int32)
    pairs = make_job([make_sequence(2), TokenSequence(np.array([7, 8, 9], np.int32), types)])
    plain = make_job([make_sequence(1, 30), make_sequence(1, 40)])
    batch = pack([(plain, 1), (pairs, 1), (plain, 0)])
    assert batch.arrays["input_ids"].tolist() == [40, 7, 8, 9, 30]
    assert batch.arrays["token_type_ids"].tolist() == [0, 0, 1, 1, 0]
    assert batch.cu_seqlens.tolist() == [0, 1, 4, 5]


def test_tokens_of_prompts_are_counted_for_each_sequence() -> None:
    """0 where a job says nothing of them."""
    prompted = make_job([make_sequence(2), make_sequence(5)])
    prompted.inputs["num_prompt_tokens"] = Ragged(np.array([1, 3], np.int32))
    plain = make_job([make_sequence(1), make_sequence(1)])
    batch = pack([(plain, 1), (prompted, 1), (prompted, 0), (plain, 0)])
    assert batch.arrays["num_prompt_tokens"].tolist() == [0, 3, 1, 0]
    assert pack([(plain, 0)]).arrays["num_prompt_tokens"].tolist() == [0]


def test_tokens_have_the_adapter_of_their_job() -> None:
    adapted, plain = make_job([make_sequence(2), make_sequence(3)]), make_job([make_sequence(1)])
    adapted.inputs["adapter_ids"] = Ragged(np.array([4, 1], np.int32))
    assert pack([(adapted, 1), (plain, 0), (adapted, 0)]).arrays["adapter_ids"].tolist() == [1, 1, 1, 0, 4, 4]


def test_equal_lengths_become_neighbours_in_the_order_they_came() -> None:
    assert sort_by_length([5, 2, 5, 1, 2]) == [3, 1, 4, 0, 2]


@pytest.mark.parametrize(("longest", "width"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (9, 16)])
def test_tables_are_a_power_of_two_wide(longest: int, width: int) -> None:
    tables = [list(range(1, longest + 1)), [7]]
    packed = pack_tables(tables)
    assert packed.shape == (2, width)
    for row, table in zip(packed.tolist(), tables, strict=True):
        assert row == table + [SCRATCH_BLOCK] * (width - len(table))
