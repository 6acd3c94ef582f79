"""What embeddings are cut to and written as: pure functions, against sentence-transformers and numpy."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from conftest import EMBEDDER
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sentence_transformers import quantize_embeddings
from sentence_transformers.util import truncate_embeddings

from server.errors import InvalidField
from server.tasks.embed import EmbedParams, build_params, check_dimensions, reduce
from server.tasks.vector_types import WRITERS, OutputType, Rows, write_float16, write_int8, write_uint8
from server.wire.job import Ragged
from server.wire.messages import read_array, write_array

ROWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=st.floats(-1e4, 1e4, width=32))
UNSCALED = replace(EMBEDDER, normalize=False)


def draw_rows(num_rows: int = 20, width: int = 384) -> Rows:
    """Of length 1."""
    rows = np.random.default_rng(0).standard_normal((num_rows, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def reduce_rows(rows: Rows, params: EmbedParams) -> dict[str, np.ndarray]:
    return {name: array.values for name, array in reduce({"embeddings": Ragged(rows)}, params).items()}


@given(ROWS)
def test_bits_are_sentence_transformers(rows: Rows) -> None:
    for kind in ("binary", "ubinary"):
        written, theirs = WRITERS[kind](rows), quantize_embeddings(rows, kind)  # type: ignore[index, arg-type]
        np.testing.assert_array_equal(written, theirs)
        assert written.dtype == theirs.dtype and written.shape == (len(rows), -(-rows.shape[1] // 8))


@given(ROWS)
def test_bytes_are_a_hundred_and_twenty_seventh(rows: Rows) -> None:
    norms = np.maximum(np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True), 1e-12)
    signed, unsigned = write_int8(rows), write_uint8(rows)
    assert signed.dtype == np.int8 and unsigned.dtype == np.uint8
    np.testing.assert_allclose(signed / 127, rows / norms, atol=0.5001 / 127)
    np.testing.assert_array_equal(unsigned.astype(int), signed.astype(int) + 128)


def test_bytes_keep_the_cosines() -> None:
    rows = draw_rows()
    signed = write_int8(rows).astype(np.float64)
    norms = np.linalg.norm(signed, axis=1)
    np.testing.assert_allclose(signed @ signed.T / np.outer(norms, norms), rows @ rows.T, atol=0.02)


def test_known_bytes() -> None:
    rows = np.float32([[1, 0], [-1, 0], [0.6, -0.8], [0, 0]])
    assert write_int8(rows).tolist() == [[127, 0], [-127, 0], [76, -102], [0, 0]]
    assert write_uint8(rows).tolist() == [[255, 128], [1, 128], [204, 26], [128, 128]]


def test_float16() -> None:
    rows = draw_rows()
    written = write_float16(rows)
    assert written.dtype == np.float16
    np.testing.assert_array_equal(written, rows.astype(np.float16))
    assert write_float16(np.float32([[1e6, -1e6]])).tolist() == [[65504, -65504]]


def test_what_is_no_number_shows_in_every_type() -> None:
    """In its norm, where bytes and bits cannot say it."""
    rows = draw_rows(3)
    rows[1, 5] = np.nan
    for kind in WRITERS:
        arrays = reduce_rows(rows, EmbedParams(types=(kind,)))
        finite = [np.isfinite(values).reshape(3, -1).all(axis=1) for values in arrays.values()]
        assert np.all(finite, axis=0).tolist() == [True, False, True]


def test_halves_do_not_hide_infinity() -> None:
    rows = draw_rows(3)
    rows[1, 5] = np.inf
    arrays = reduce_rows(rows, EmbedParams(types=("float16",)))
    assert np.isfinite(arrays["norms"]).tolist() == [True, False, True]


@pytest.mark.parametrize("types", [("float",), ("float16",), ("int8",), ("float", "ubinary"), ("binary", "uint8")])
def test_what_crosses_the_wire(types: tuple[OutputType, ...]) -> None:
    rows, params = draw_rows(), EmbedParams(64, True, types)
    params = msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=EmbedParams)
    arrays = reduce_rows(rows, params)
    names = ["embeddings" if kind == "float" else kind for kind in types]
    assert list(arrays) == [*names, *([] if "float" in types else ["norms"])]
    for kind, name in zip(types, names, strict=True):
        cut = rows[:, :64] / np.linalg.norm(rows[:, :64], axis=1, keepdims=True)
        np.testing.assert_allclose(arrays[name], WRITERS[kind](cut), rtol=1e-5, atol=0 if kind == "float" else 1)
    assert sum(values.nbytes for values in arrays.values()) <= 20 * (64 * 4 + 8)


def test_the_cut_keeps_what_a_model_says_of_lengths() -> None:
    """OpenAI's always have length 1. sentence-transformers cuts and no more, unless it is asked to normalise."""
    rows = draw_rows()
    cut = truncate_embeddings(rows, 100)
    scaled = reduce_rows(rows, build_params(EMBEDDER, dimensions=4))["embeddings"]
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), 1.0, rtol=1e-5)
    plain = reduce_rows(rows, build_params(replace(UNSCALED, output_dim=384), dimensions=100))["embeddings"]
    np.testing.assert_array_equal(plain, cut)
    same = reduce_rows(rows, build_params(replace(EMBEDDER, output_dim=384), dimensions=100))["embeddings"]
    np.testing.assert_allclose(same, cut / np.linalg.norm(cut, axis=1, keepdims=True), rtol=1e-5)


def test_normalize() -> None:
    assert build_params(EMBEDDER) == EmbedParams()
    assert not build_params(EMBEDDER, dimensions=EMBEDDER.output_dim).rescale
    assert build_params(EMBEDDER, dimensions=3).rescale and not build_params(UNSCALED, dimensions=3).rescale
    assert not build_params(EMBEDDER, normalize=True).rescale, "It has length 1 already."
    assert build_params(EMBEDDER, normalize=True, dimensions=3).rescale
    assert build_params(UNSCALED, normalize=True).rescale and not build_params(UNSCALED, normalize=False).rescale
    with pytest.raises(InvalidField, match=r"^normalize cannot be false") as caught:
        build_params(EMBEDDER, normalize=False)
    assert caught.value.param == "normalize"


def test_dimensions_of_a_matryoshka_model() -> None:
    info = replace(EMBEDDER, matryoshka_dimensions=(6, 4, 100))
    for dimensions in (None, 4, 6, 8):
        check_dimensions(dimensions, info)
    with pytest.raises(InvalidField, match=r"^output_dimension is 5; this model was trained for 4, 6, 8$") as caught:
        check_dimensions(5, info, "output_dimension")
    assert caught.value.param == "output_dimension"
    with pytest.raises(InvalidField, match="dimensions is 9; this model's vectors have 8"):
        check_dimensions(9, info)
    check_dimensions(5, replace(info, matryoshka_dimensions=(100,)))


@pytest.mark.parametrize("kind", WRITERS)
def test_over_the_wire(kind: OutputType) -> None:
    arrays = reduce({"embeddings": Ragged(draw_rows())}, EmbedParams(types=(kind,)))
    for array in arrays.values():
        back = read_array(write_array(array))
        assert back.values.dtype == array.values.dtype and back.row_splits is None
        np.testing.assert_array_equal(back.values, array.values)
