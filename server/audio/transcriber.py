"""Sound of any length, window by window: where the next one begins, what it is told of those before, and whether it has
to be decoded once more. Pure.

Whisper's sequential algorithm (Radford et al., 2022, section 3.8; `transcribe.py` of openai-whisper).
"""

from dataclasses import dataclass

from server.audio.fallback import Attempt
from server.audio.segments import Segment, Window, cut_segments
from server.audio.speech import ENGLISH, Speech, SpeechTask

MAX_TEMPERATURE_TOLD = 0.5
"""What was written at a higher one may be nonsense, which the next window would go on with."""


@dataclass(frozen=True, slots=True)
class TranscriptWish:
    """`prompt_ids`: tokens of what the client says was said before. `temperature`: 0 leaves it to the rules.
    `has_words`: when each is said is wanted too."""

    language: str
    task: SpeechTask = "transcribe"
    temperature: float = 0.0
    prompt_ids: tuple[int, ...] = ()
    has_words: bool = False

    @property
    def written_language(self) -> str:
        return ENGLISH if self.task == "translate" else self.language


class Transcriber:
    """Of one sound of so many frames. Mutable: how far it is, and what has been said."""

    def __init__(self, speech: Speech, wish: TranscriptWish, *, num_frames: int, window_frames: int) -> None:
        self.speech, self.wish = speech, wish
        self.num_frames, self.window_frames = num_frames, window_frames
        self.seek = 0
        self.told = list(wish.prompt_ids)
        """What the next window is told of."""

    @property
    def window(self) -> Window | None:
        """The next one; None: all has been heard."""
        left = self.num_frames - self.seek
        return Window(self.seek, min(left, self.window_frames)) if left > 0 else None

    @property
    def prompt(self) -> list[int]:
        """Of the next window."""
        return self.speech.begin(self.wish.language, self.wish.task, self.told)

    def take(self, attempt: Attempt) -> list[Segment]:
        """What the window says, and go on to the next one."""
        window = self.window
        assert window is not None
        if attempt.is_silent:
            self.seek += window.num_frames
            return []
        segments, advance = cut_segments(attempt, window, self.speech.tokens)
        self.seek += advance
        said = [token_id for segment in segments for token_id in segment.token_ids]
        self.told = [] if attempt.temperature > MAX_TEMPERATURE_TOLD else [*self.told, *said]
        return segments
