"""Stop strings, wherever pieces, tokens and characters are cut."""

import sys
from collections.abc import Callable
from itertools import pairwise
from types import FrameType
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from server.text.detokenizer import Detokenizer, TokenTexts
from server.text.stop_strings import StopStrings
from server.text.text_stream import TextRules, TextStream
from server.wire.generation import AnswerNews

LETTERS = st.text("ab", max_size=24)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4)


def cut_at_stop(text: str, stops: list[str], *, is_included: bool) -> tuple[str, bool]:
    """The plain way: letter by letter, the longest that ends here."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end if is_included else end - max(map(len, found))], True
    return text, False


@settings(max_examples=500, deadline=None)
@given(text=LETTERS, stops=STOPS, cuts=st.lists(st.integers(0, 24)), is_included=st.booleans())
def test_however_it_is_cut(text: str, stops: list[str], cuts: list[int], is_included: bool) -> None:
    expected, is_hit = cut_at_stop(text, stops, is_included=is_included)
    finder = StopStrings(stops, is_included=is_included)
    borders = [0, *sorted(cuts), len(text)]
    pieces = [finder.push(text[begin:end]) for begin, end in pairwise(borders)]
    assert ("".join(pieces) + finder.finish(), finder.is_hit) == (expected, is_hit)


@settings(max_examples=300, deadline=None)
@given(text=LETTERS, stops=STOPS)
def test_no_more_is_held_back_than_must_be(text: str, stops: list[str]) -> None:
    finder = StopStrings(stops)
    said = ""
    for end, letter in enumerate(text, 1):
        said += finder.push(letter)
        if finder.is_hit:
            return
        held = text[len(said) : end]
        assert not held or any(stop.startswith(held) for stop in stops)
        assert not any(stop.startswith(text[begin:end]) for stop in stops for begin in range(len(said)))


def test_a_stop_string_that_repeats_itself() -> None:
    finder = StopStrings(["aab"])
    assert [finder.push(letter) for letter in "aaab"] == ["", "", "a", ""]
    assert finder.is_hit and finder.push("more") == "" and finder.finish() == ""


def test_work_is_bounded_by_what_is_held_back() -> None:
    """A string of 4 MB cost 0.7 s of the event loop before it was looked for."""
    finder = StopStrings(["ab" * 2_000_000, "b" * 1000 + "c", "ba" * 500 + "c"])
    lines = count_lines(lambda: [finder.push("ab") for _ in range(5000)])
    assert lines < 5000 * 100
    assert finder.push("b" * 1001) == "ab" * 5000 + "b" and not finder.is_hit
    assert finder.push("c") == "" and finder.is_hit


def count_lines(work: Callable[[], object]) -> int:
    """Lines of Python run: what takes long in it, whatever the machine."""
    num_lines = 0

    def trace(frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
        nonlocal num_lines
        num_lines += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return num_lines


def test_without_any_all_passes() -> None:
    finder = StopStrings([])
    assert finder.push("text") == "text" and finder.finish() == ""


LETTER_TEXTS = TokenTexts(None)
LETTER_TEXTS._unused = {0: False, 1: False}
LETTER_TEXTS._pieces = {0: b"a", 1: b"b"}
LETTER_TEXTS._read = lambda token_id, anchor: LETTER_TEXTS._pieces[token_id]  # type: ignore[method-assign]


@settings(max_examples=300, deadline=None)
@given(
    text=LETTERS,
    stops=STOPS,
    size=st.integers(1, 4),
    min_tokens=st.integers(0, 6),
    is_included=st.booleans(),
)
def test_over_events_of_several_tokens(
    text: str, stops: list[str], size: int, min_tokens: int, is_included: bool
) -> None:
    """Stop strings do not count in the first `min_tokens` tokens, and what comes after a hit is dropped."""
    head, tail = text[:min_tokens], text[min_tokens:]
    cut, is_hit = cut_at_stop(tail, stops, is_included=is_included)
    stream = TextStream(0, Detokenizer(LETTER_TEXTS), TextRules(tuple(stops), is_included, min_tokens=min_tokens))
    ids = ["ab".index(letter) for letter in text]
    groups = [tuple(ids[begin : begin + size]) for begin in range(0, len(ids), size)] or [()]
    deltas = []
    for place, group in enumerate(groups):
        deltas.append(stream.push(AnswerNews(0, group, finish_reason="length" if place == len(groups) - 1 else "")))
        if stream.finish_reason:
            break
    assert "".join(delta.text for delta in deltas) == head + cut
    assert stream.finish_reason == deltas[-1].finish_reason == ("stop" if is_hit else "length")
    assert all(not delta.finish_reason for delta in deltas[:-1])
    offsets = [token.offset for delta in deltas for token in delta.tokens]
    assert offsets == list(range(len(offsets))), "a letter each"
