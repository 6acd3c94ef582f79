"""Tokens with their places: each is where the text says it, in whole texts, truncated ones and windows."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import build_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import KINDS, save_tokenizer

from server.errors import EmptyInput, InputTooLong, InvalidField
from server.text.located import Window
from server.text.tokenizer import Tokenizer
from server.text.truncation import UNBROKEN_CHARS
from server.wire.job import fill_types

pytestmark = pytest.mark.anyio

LIMIT = 24
TEXTS = st.text(st.sampled_from("abcé.-東🎹 \t") | st.characters(codec="utf-8"), min_size=1, max_size=120)
SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path, pool: ThreadPoolExecutor) -> Tokenizer:
    size = len(save_tokenizer(request.param, tmp_path))
    return build_tokenizer(tmp_path, pool, max_input_tokens=LIMIT, vocab_size=size)


def list_spans(window: Window) -> list[tuple[int, int, int]]:
    """(id, start, end) of what is not special."""
    columns = (window.sequence.input_ids, window.starts, window.ends)
    return list(zip(*(column[~window.is_special].tolist() for column in columns), strict=True))


@SETTINGS
@given(text=TEXTS, stride=st.integers(0, 5))
async def test_windows_are_cut_from_the_whole(tokenizer: Tokenizer, text: str, stride: int) -> None:
    """Neighbours share `stride` tokens, and without these they are the whole text's; each fits."""
    pieces = (await tokenizer.describe([text], add_special_tokens=True, field="inputs"))[0]
    expected = [(piece.id, piece.start, piece.stop) for piece in pieces if not piece.special]
    (windows,) = await tokenizer.locate_all([text], stride=stride, max_windows=99, field="inputs")
    spans = [list_spans(window) for window in windows]
    joined = spans[0] + [span for each in spans[1:] for span in each[stride:]]
    assert joined == expected
    assert all(one[-stride:] == other[:stride] for one, other in pairwise(spans) if stride)
    for window in windows:
        assert window.sequence.num_tokens <= LIMIT
        assert window.is_special[0] and window.is_special[-1] and window.is_special.sum() == 2


@SETTINGS
@given(text=TEXTS)
async def test_truncation_keeps_places(tokenizer: Tokenizer, text: str) -> None:
    """From the left too, where the beginning of the text is not even read."""
    text = text * 40
    (windows,) = await tokenizer.locate_all([text], stride=0, max_windows=999, field="inputs")
    for side, kept in (("right", slice(None, LIMIT - 2)), ("left", slice(2 - LIMIT, None))):
        ((window,),) = await tokenizer.locate([text], truncation=side, field="inputs")  # type: ignore[arg-type]
        assert list_spans(window) == [span for each in windows for span in list_spans(each)][kept]
        (sequence,) = await tokenizer.encode([text], truncation=side, field="inputs")  # type: ignore[arg-type]
        np.testing.assert_array_equal(window.sequence.input_ids, sequence.input_ids)


async def test_the_second_text_of_a_pair_is_located(tokenizer: Tokenizer) -> None:
    """The first one is whole in every window."""
    pair = ("Clara", "Robert wohnte in Zwickau und in Leipzig. " * 4)
    (windows,) = await tokenizer.locate_all([pair], stride=2, max_windows=99, field="inputs")
    (first,) = await tokenizer.encode(["Clara"], truncation="error", field="inputs")
    assert len(windows) > 1
    for window in windows:
        np.testing.assert_array_equal(window.sequence.input_ids[: first.num_tokens], first.input_ids)
        assert window.is_special[: first.num_tokens].all() and not window.is_special[-2]
    assert windows[-1].ends.max() in (len(pair[1]), len(pair[1]) - 1)


async def test_what_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(EmptyInput, match=r"inputs\[1\] must not be empty"):
        await tokenizer.locate_all(["a", ""], stride=1, max_windows=9, field="inputs")
    with pytest.raises(InputTooLong, match="with a stride the limit is 262,144"):
        await tokenizer.locate_all(["a " * UNBROKEN_CHARS], stride=1, max_windows=9, field="inputs")
    with pytest.raises(InvalidField, match="stride is 22 tokens, and a window has room for 22"):
        await tokenizer.locate_all(["a . " * LIMIT], stride=LIMIT - 2, max_windows=9, field="inputs")
    with pytest.raises(InvalidField, match=r"\[1\] is cut into .* windows; the limit is 3"):
        await tokenizer.locate_all(["a", "a . " * LIMIT * 2], stride=0, max_windows=4, field="inputs")


async def test_of_a_pair_only_the_first_text_is_cut(tokenizer: Tokenizer) -> None:
    long, short = "Clara wohnte in Leipzig. " * 200, "in Leipzig"
    (cut,) = await tokenizer.encode([(long, short)], truncation="right", field="inputs", cuts_first=True)
    (second,) = await tokenizer.encode([short], truncation="error", field="inputs")
    (first,) = await tokenizer.encode([long], truncation="right", field="inputs")
    assert cut.num_tokens == LIMIT
    np.testing.assert_array_equal(cut.input_ids[1 - second.num_tokens :], second.input_ids[1:])
    np.testing.assert_array_equal(cut.input_ids[:4], first.input_ids[:4])
    with pytest.raises(InputTooLong, match="in its second text alone"):
        await tokenizer.encode([(short, long)], truncation="right", field="inputs", cuts_first=True)


async def test_texts_are_read_once_for_all_their_labels(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And cut as if each pair were alone."""
    texts, labels = ("Clara wohnte in Leipzig. " * 3, "in Leipzig"), ("a", "in Leipzig", "wohnte")
    pairs = [(text, label) for text in texts for label in labels]
    encode = partial(tokenizer.encode, truncation="right", field="inputs", cuts_first=True)
    alone = [(await encode([pair]))[0] for pair in pairs]
    read = []
    monkeypatch.setattr(
        tokenizer, "_read", lambda heads, work, f=tokenizer._read: read.append(heads[0].text) or f(heads, work)
    )
    for found, expected in zip(await encode(pairs), alone, strict=True):
        np.testing.assert_array_equal(found.input_ids, expected.input_ids)
        np.testing.assert_array_equal(fill_types(found), fill_types(expected))
    assert [read.count(text) for text in texts] == [1, 1 + 2]
    with pytest.raises(InputTooLong, match=r"\[1\] has \d+ tokens in its second text alone"):
        await encode([("a", "b"), ("a", "." * 300)])
