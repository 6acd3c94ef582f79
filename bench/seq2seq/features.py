"""What the comparison of those that hear has in common: clips of 30 seconds, which are noise. Needs nothing but numpy.

A task's one input id says which clip, and Whisper's features are made of it, before time is taken.
"""

import numpy as np
import numpy.typing as npt

from bench.generation.session import Task

CLIP_S, NUM_FRAMES, NUM_MELS = 30.0, 3000, 80
NUM_TOKENS = 100
"""Of each answer: what people say in half a minute."""
MAX_CONCURRENT = 8
WHISPER_PROMPT = (50258, 50259, 50359, 50363)
"""Begin, English, transcribe, no timestamps."""


def make_features(task: Task) -> npt.NDArray[np.float32]:
    """[NUM_FRAMES, NUM_MELS]."""
    rng = np.random.default_rng(task.input_ids[0])
    return rng.standard_normal((NUM_FRAMES, NUM_MELS), np.float32)


def sample_clips(count: int) -> list[Task]:
    return [Task([clip], NUM_TOKENS) for clip in range(count)]
