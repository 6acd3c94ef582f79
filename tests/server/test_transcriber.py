"""From window to window: what is left out, and what the next one is told."""

import pytest
from fake_hearer import PREVIOUS, RAW, SETTINGS, START, describe_model, find, spell

from server.audio.fallback import Attempt
from server.audio.hearing import Heard
from server.audio.speech import Speech, find_speech
from server.audio.transcriber import Transcriber, TranscriptWish
from server.text.detokenizer import TokenTexts

SPEECH: Speech = find_speech(describe_model(SETTINGS), TokenTexts(RAW))


def start(num_frames: int = 450) -> Transcriber:
    return Transcriber(SPEECH, TranscriptWish("en"), num_frames=num_frames, window_frames=200)


def attempt(*parts: str | float, temperature: float = 0.0, logprob: float = -0.2, no_speech: float = 0.0) -> Attempt:
    ids = tuple(spell(*parts, end=False))
    return Attempt(ids, SPEECH.tokens.write(ids), temperature, logprob, no_speech)


def test_every_window_begins_where_the_last_segment_ended() -> None:
    run = start()
    assert [segment.text for segment in run.take(attempt(0.0, " hello", 1.5, 1.5, " wor"))] == [" hello"]
    assert run.window is not None and (run.window.begin, run.window.num_frames) == (150, 200)
    assert run.prompt == [
        PREVIOUS,
        *spell(0.0, " hello", 1.5, end=False),
        START,
        find("<|en|>"),
        find("<|transcribe|>"),
    ]
    run.take(attempt(0.0, " world", 1.0))
    assert run.window is not None and (run.window.begin, run.window.num_frames) == (350, 100)
    run.take(attempt(0.0, " in", 1.0))
    assert run.window is None


def test_silence_is_left_out_and_what_was_said_is_kept() -> None:
    run = start()
    run.take(attempt(0.0, " hello", 1.9))
    told = run.prompt
    assert run.take(attempt(0.0, " nothing", 1.0, logprob=-1.5, no_speech=0.7)) == []
    assert run.seek == 400 and run.prompt == told


@pytest.mark.parametrize(("temperature", "is_told"), [(0.4, True), (0.6, False)])
def test_what_was_drawn_wildly_is_not_told(temperature: float, is_told: bool) -> None:
    run = start()
    assert run.take(attempt(0.0, " hello", 1.9, temperature=temperature))
    assert (run.prompt[0] == PREVIOUS) == is_told


@pytest.mark.parametrize(("num_samples", "num_frames"), [(1, 1), (159, 1), (160, 1), (319, 1), (320, 2), (32_080, 200)])
def test_a_part_of_a_frame_is_no_window(num_samples: int, num_frames: int) -> None:
    assert Heard(None, num_samples).num_frames == num_frames  # type: ignore[arg-type]
