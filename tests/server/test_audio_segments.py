"""Times of windows to segments of the whole: worked examples, and speakers who are heard to their end."""

from collections.abc import Iterator

import pytest
from fake_generator import build_byte_level
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from server.audio.fallback import TEMPERATURES, Attempt, list_temperatures
from server.audio.segments import Segment, TranscriptTokens, Window, cut_segments
from server.text.detokenizer import TokenTexts

RAW = build_byte_level()
END_ID = RAW.get_vocab_size()
RAW.add_special_tokens(["<|endoftext|>", "<|notimestamps|>"])
RAW.add_tokens([AddedToken(f"<|{index / 50:.2f}|>") for index in range(1501)])
TOKENS = TranscriptTokens(TokenTexts(RAW), end_id=END_ID, first_timestamp_id=END_ID + 2)
WINDOW_FRAMES = 3000


def at(seconds: float) -> int:
    """The token of this time."""
    token_id = RAW.token_to_id(f"<|{seconds:.2f}|>")
    assert token_id is not None
    return token_id


def spell(*parts: str | float) -> tuple[int, ...]:
    """Texts and times in turn."""
    ids: list[int] = []
    for part in parts:
        ids += RAW.encode(part, add_special_tokens=False).ids if isinstance(part, str) else [at(part)]
    return tuple(ids)


def attempt(token_ids: tuple[int, ...] = (), text: str = "", logprob: float = -0.2, no_speech: float = 0.0) -> Attempt:
    return Attempt(token_ids, text, 0.0, logprob, no_speech)


def cut(token_ids: tuple[int, ...], begin: int = 0, num_frames: int = WINDOW_FRAMES) -> tuple[list[Segment], int]:
    return cut_segments(attempt(token_ids), Window(begin, num_frames), TOKENS)


def tell(segments: list[Segment]) -> list[tuple[float, float, str]]:
    return [(segment.begin_s, segment.end_s, segment.text) for segment in segments]


def test_the_window_ends_with_a_segment_that_goes_on() -> None:
    """The next window begins where that does, and so hears all of it."""
    segments, advance = cut(spell(0.0, " the", 2.5, 2.5, " bat", 4.02, 5.0, " he"), begin=6000)
    assert tell(segments) == [(60.0, 62.5, " the"), (62.5, 64.02, " bat")]
    assert advance == 402 and [segment.seek for segment in segments] == [6000, 6000]
    assert segments[1].token_ids == spell(2.5, " bat", 4.02)


def test_nobody_speaks_after_a_time_that_stands_alone() -> None:
    segments, advance = cut(spell(0.0, " the", 2.5, 3.0, " bat", 4.0), begin=100)
    assert tell(segments) == [(1.0, 3.5, " the"), (4.0, 5.0, " bat")] and advance == WINDOW_FRAMES


def test_two_times_at_the_end_go_on_there() -> None:
    segments, advance = cut(spell(0.0, " the", 2.5, 2.5))
    assert tell(segments) == [(0.0, 2.5, " the")] and advance == 250


@pytest.mark.parametrize(
    ("token_ids", "end_s"),
    [
        (spell(" the bat"), 12.0),
        (spell(0.0, " the bat"), 12.0),
        (spell(0.0, " the bat", 3.0), 3.0),
        (spell(1.0, " the bat"), 1.0),
    ],
)
def test_a_window_without_borders_is_one_segment(token_ids: tuple[int, ...], end_s: float) -> None:
    """As openai-whisper has it, even where the only time is meant as the beginning."""
    segments, advance = cut(token_ids, num_frames=1200)
    assert tell(segments) == [(0.0, end_s, " the bat")] and advance == 1200


def test_segments_without_text_or_duration_are_left_out() -> None:
    segments, advance = cut(spell(0.0, " ", 1.0, 1.0, " the", 1.0, 1.0, " bat", 2.0, 2.0))
    assert tell(segments) == [(1.0, 2.0, " bat")] and advance == 200
    assert cut(()) == ([], WINDOW_FRAMES)


@settings(max_examples=50, deadline=None)
@given(
    token_ids=st.lists(st.one_of(st.integers(0, 30), st.integers(at(0.0), at(30.0))), max_size=12).map(tuple),
    num_frames=st.integers(1, WINDOW_FRAMES),
)
@example(token_ids=spell(0.0, 0.0, " the"), num_frames=7)
def test_whatever_a_model_says_there_is_a_next_window(token_ids: tuple[int, ...], num_frames: int) -> None:
    segments, advance = cut(token_ids, begin=50, num_frames=num_frames)
    assert advance > 0
    for segment in segments:
        assert 50 <= segment.begin < segment.end and segment.text.strip()
        assert segment.text == TOKENS.write(segment.token_ids)
    rest = iter(token_ids)
    assert all(token_id in rest for segment in segments for token_id in segment.token_ids)


def hear(speech: list[tuple[int, int]], window: Window) -> Iterator[int]:
    """What a model says that hears everything: times of all sentences in the window, from beginning to end in frames;
    the end of one only if that is in it too."""
    for begin, end in speech:
        first, last = begin - window.begin, end - window.begin
        if 0 <= first < window.num_frames and begin < end:
            yield at(first / 100)
            yield from spell(" bat")
            if last > window.num_frames:
                return
            yield at(last / 100)


@settings(max_examples=25, deadline=None)
@given(sentences=st.lists(st.tuples(st.integers(0, 100), st.integers(1, 250)), min_size=1, max_size=20))
def test_every_sentence_is_heard_once_wherever_windows_end(sentences: list[tuple[int, int]]) -> None:
    """Silence and speech in turn, of so many tokens for times. What is alone in a window begins with that."""
    speech: list[tuple[int, int]] = []
    now = 0
    for silence, duration in sentences:
        speech.append((now + 2 * silence, now + 2 * silence + 2 * duration))
        now = speech[-1][1]
    heard: list[Segment] = []
    begin = 0
    while begin < now:
        window = Window(begin, min(WINDOW_FRAMES, now - begin))
        segments, advance = cut(tuple(hear(speech, window)), window.begin, window.num_frames)
        heard += segments
        begin += advance
    assert [segment.end for segment in heard] == [last for _, last in speech]
    for segment, (first, _) in zip(heard, speech, strict=True):
        assert segment.begin in (first, segment.seek)
    assert [segment.begin for segment in heard[:-1]] == [first for first, _ in speech[:-1]]


def test_repetition_and_doubt_call_for_another_attempt() -> None:
    assert attempt(text=" A short and sensible sentence.").is_good
    again = attempt(text=" again and again" * 20)
    assert again.compression_ratio > 2.4 and not again.is_good
    assert not attempt(text=" well", logprob=-1.01).is_good
    assert attempt(text="").compression_ratio == 0.0


def test_silence_is_good_however_unsure() -> None:
    silent = attempt(text=" thank you" * 40, logprob=-1.5, no_speech=0.7)
    assert silent.is_silent and silent.is_good
    assert not attempt(logprob=-0.5, no_speech=0.9).is_silent and not attempt(logprob=-1.5, no_speech=0.5).is_silent


def test_temperatures_rise_unless_one_is_asked_for() -> None:
    assert list_temperatures(0.0) == TEMPERATURES == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert list_temperatures(0.3) == (0.3,)
