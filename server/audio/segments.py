"""Whisper's tokens of one window to segments with their times, and how far the next window is to begin: its sequential
algorithm for sound of any length (`transcribe.py` of openai-whisper, `generate` in transformers)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from server.audio.fallback import Attempt
from server.audio.features import FRAMES_PER_S
from server.text.detokenizer import TokenTexts, detokenize

FRAMES_PER_TIMESTAMP = 2
"""Two tokens for times that follow each other are 0.02 s apart, as are rows of the encoder."""


@dataclass(frozen=True, slots=True)
class TranscriptTokens:
    """How ids are laid out: those of text come first, and those of times last."""

    texts: TokenTexts
    end_id: int
    """`<|endoftext|>`; text is below it."""
    first_timestamp_id: int
    """`<|0.00|>`, the beginning of the window."""

    def is_timestamp(self, token_id: int) -> bool:
        return token_id >= self.first_timestamp_id

    def count_frames(self, token_id: int) -> int:
        """From the window's beginning to this time; 0 where it is none."""
        return max(token_id - self.first_timestamp_id, 0) * FRAMES_PER_TIMESTAMP

    def write(self, token_ids: Sequence[int]) -> str:
        """The text alone."""
        return detokenize(self.texts, [token_id for token_id in token_ids if token_id < self.end_id])


@dataclass(frozen=True, slots=True)
class Window:
    """Of the sound: the frame it begins with, and how many there are up to its end, at most an encoder's worth."""

    begin: int
    num_frames: int


@dataclass(frozen=True, slots=True)
class Word:
    """With the punctuation around it. Frames count from the sound's beginning."""

    text: str
    begin: int
    end: int

    @property
    def begin_s(self) -> float:
        return self.begin / FRAMES_PER_S

    @property
    def end_s(self) -> float:
        return self.end / FRAMES_PER_S


@dataclass(frozen=True, slots=True)
class Segment:
    """Something that is said. Frames count from the sound's beginning, those of times among `token_ids` from `seek`,
    where the window begins. The attempt's figures are of the whole window; `place`: which of its tokens is the first.
    `words`: where they were asked for."""

    seek: int
    begin: int
    end: int
    token_ids: tuple[int, ...]
    text: str
    attempt: Attempt
    place: int = 0
    words: tuple[Word, ...] = ()

    @property
    def begin_s(self) -> float:
        return self.begin / FRAMES_PER_S

    @property
    def end_s(self) -> float:
        return self.end / FRAMES_PER_S


@dataclass(frozen=True, slots=True)
class Transcript:
    """`language`: its code."""

    language: str
    duration_s: float
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments).strip()


def cut_segments(attempt: Attempt, window: Window, tokens: TranscriptTokens) -> tuple[list[Segment], int]:
    """What the window says, and after how many frames the next one begins.

    Two times in a row end a segment and begin another. If the last of them has no end, it goes on behind the window,
    so that it is left to the next one, which begins there. Segments without text or without duration are left out.
    """
    token_ids = attempt.token_ids
    is_time = [tokens.is_timestamp(token_id) for token_id in token_ids]
    borders = [index for index in range(1, len(token_ids)) if is_time[index - 1] and is_time[index]]
    if not borders:
        return keep_spoken([take_whole(attempt, window, tokens)]), window.num_frames
    # A time that stands alone at the end: behind it nobody speaks.
    ends_alone = is_time[-2:] == [False, True]
    places = pairwise([0, *borders, *([len(token_ids)] if ends_alone else [])])
    segments = [build_segment(attempt, window, tokens, begin, end) for begin, end in places]
    # 0 only where a model does not keep to Whisper's rules for times: nothing would ever come after this window.
    advance = 0 if ends_alone else tokens.count_frames(token_ids[borders[-1] - 1])
    return keep_spoken(segments), advance or window.num_frames


def build_segment(attempt: Attempt, window: Window, tokens: TranscriptTokens, first: int, last: int) -> Segment:
    """Of the attempt's tokens [first, last): from the time it begins with to the one it ends with."""
    part = attempt.token_ids[first:last]
    begin, end = tokens.count_frames(part[0]), tokens.count_frames(part[-1])
    return Segment(window.begin, window.begin + begin, window.begin + end, part, tokens.write(part), attempt, first)


def take_whole(attempt: Attempt, window: Window, tokens: TranscriptTokens) -> Segment:
    """All of a window as one segment, up to the last time in it if there is one."""
    times = [tokens.count_frames(token_id) for token_id in attempt.token_ids if tokens.is_timestamp(token_id)]
    end = window.begin + (times[-1] if times and times[-1] else window.num_frames)
    return Segment(window.begin, window.begin, end, attempt.token_ids, tokens.write(attempt.token_ids), attempt)


def keep_spoken(segments: Sequence[Segment]) -> list[Segment]:
    return [segment for segment in segments if segment.begin < segment.end and segment.text.strip()]
