"""When a window is to be decoded once more, less surely: the rules of `transcribe.py` in openai-whisper (Radford et
al., 2022, section 4.5)."""

import zlib
from dataclasses import dataclass, field

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""One after the other, until an attempt is good. What the last one gives is taken, whatever it is."""
MAX_COMPRESSION_RATIO = 2.4
"""Of text; what can be pressed together more says the same again and again."""
MIN_AVG_LOGPROB = -1.0
MAX_NO_SPEECH_PROB = 0.6


@dataclass(frozen=True, slots=True)
class Attempt:
    """A window as it was decoded once.

    `token_ids`: without the prompt and without the end. `avg_logprob`: of a token, the end among them.
    `no_speech_prob`: of `<|nospeech|>` where the transcript begins; 0 for models that have no such token.
    """

    token_ids: tuple[int, ...]
    text: str
    temperature: float
    avg_logprob: float
    no_speech_prob: float

    compression_ratio: float = field(init=False)
    """Bytes of the text by those of it compressed; 0 of an empty one."""

    def __post_init__(self) -> None:
        plain = self.text.strip().encode()
        object.__setattr__(self, "compression_ratio", len(plain) / len(zlib.compress(plain)))

    @property
    def is_silent(self) -> bool:
        """Nobody speaks in this window: its text is to be left out, and no other attempt is made."""
        return self.no_speech_prob > MAX_NO_SPEECH_PROB and self.avg_logprob < MIN_AVG_LOGPROB

    @property
    def is_good(self) -> bool:
        """No other attempt is needed."""
        is_bad = self.compression_ratio > MAX_COMPRESSION_RATIO or self.avg_logprob < MIN_AVG_LOGPROB
        return self.is_silent or not is_bad


def list_temperatures(asked: float) -> tuple[float, ...]:
    """To be tried in turn. OpenAI's API: 0 leaves it to the rules above, any other is the only one."""
    return (asked,) if asked else TEMPERATURES
