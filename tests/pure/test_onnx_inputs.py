"""Groups of attention in ONNX Runtime: every token has one place, every place is a token of its own sequence."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from runtime.backends.onnx.inputs import ATTENTION_INPUTS, MAX_PAIRS, make_groups

LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=60)


@given(LENGTHS, st.integers(0, 50))
def test_places(lengths: list[int], past: int) -> None:
    seqlens = np.array(lengths, np.int32)
    found = make_groups(seqlens, seqlens + past)
    assert found.keys() == ATTENTION_INPUTS.keys()
    assert all(array.dtype == np.int64 for array in found.values())
    owners, pad_index, unpad_index = found["seq_ids"], found["pad_index"], found["unpad_index"]
    np.testing.assert_array_equal(owners, np.repeat(np.arange(len(lengths)), lengths))
    np.testing.assert_array_equal(pad_index[unpad_index], np.arange(len(owners)))
    assert sorted(found["group_order"]) == list(range(len(lengths)))
    np.testing.assert_array_equal(found["group_seqlens"], seqlens[found["group_order"]])
    end = place = 0
    for first, count, first_place, width in found["groups"]:
        assert (first, first_place) == (end, place) and count > 0
        members = found["group_order"][first : first + count]
        assert width == seqlens[members].max()
        own = owners[pad_index[first_place : first_place + count * width]].reshape(count, width)
        assert (own == members[:, None]).all()
        end, place = first + count, place + count * width
    assert (end, place) == (len(lengths), len(pad_index))


def test_a_long_text_pads_no_short_ones() -> None:
    seqlens = np.array([8] * 40 + [500], np.int32)
    found = make_groups(seqlens, seqlens)
    assert len(found["pad_index"]) == seqlens.sum()


def test_a_prompt_is_no_group_of_those_that_decode_behind_as_many_keys() -> None:
    seqlens = np.array([1] * 63 + [1030], np.int32)
    found = make_groups(seqlens, np.array([*range(1025, 1033)] * 8, np.int32))
    assert len(found["pad_index"]) == seqlens.sum()


def test_what_is_looked_at_together_is_bounded() -> None:
    """Scores of a group are in memory together; a sequence alone has to be."""
    seqlens = np.array([1000] * 40 + [6000], np.int32)
    for _, count, _, width in make_groups(seqlens, seqlens)["groups"]:
        assert count == 1 or count * width * width <= MAX_PAIRS


def test_few_padded_tokens_are_no_reason_for_another_group() -> None:
    seqlens = np.array([20, 21, 22, 23, 24], np.int32)
    assert len(make_groups(seqlens, seqlens)["groups"]) == 1
