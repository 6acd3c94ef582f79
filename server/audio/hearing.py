"""What an HTTP process needs of a model that hears: sound files become what its encoder reads, on threads of their own,
for an hour of sound takes seconds in which texts would wait."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from server.audio.alignment import Weights, align_tokens
from server.audio.decode import decode_audio
from server.audio.features import HOP, SAMPLE_RATE, Features, LogMel
from server.audio.speech import Speech


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """A file. `features`: of all of it, with silence behind what is shorter than a window."""

    features: Features
    num_samples: int

    @property
    def duration_s(self) -> float:
        return self.num_samples / SAMPLE_RATE

    @property
    def num_frames(self) -> int:
        """Of the sound alone: whole ones, or the only one."""
        return max(self.num_samples // HOP, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Hearing:
    """`speech`: how the model is asked. `max_s`: of the longest sound."""

    speech: Speech
    log_mel: LogMel
    max_s: float
    pool: ThreadPoolExecutor
    turns: asyncio.Semaphore
    """As many as the pool has threads: who waits for one can still go."""

    async def hear(self, content: bytes, field: str) -> Heard:
        """A file that came in this field. Nobody else has its turn until its thread is done, though its client may be
        gone; which ends it soon. Raises EmptyInput, InputTooLong, InvalidField."""
        gone = threading.Event()
        await self.turns.acquire()
        future = asyncio.get_running_loop().run_in_executor(self.pool, partial(self._hear, content, field, gone))
        future.add_done_callback(self._end_turn)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            gone.set()
            raise

    async def align(self, weights: Weights) -> list[int]:
        """Where each token ends, see `align_tokens`. A window of 30 s takes some tenths of a second."""
        width = self.speech.filter_width
        ends = await asyncio.get_running_loop().run_in_executor(self.pool, align_tokens, weights, width)
        found: list[int] = ends.tolist()
        return found

    def _end_turn(self, done: "asyncio.Future[Heard]") -> None:
        self.turns.release()
        if not done.cancelled():
            done.exception()  # of a file whose client is gone, nobody else asks for it

    def _hear(self, content: bytes, field: str, gone: threading.Event) -> Heard:
        samples = decode_audio(content, max_s=self.max_s, field=field, gone=gone)
        return Heard(self.log_mel.compute(samples), len(samples))

    def cut_rows(self, heard: Heard, begin: int) -> Features:
        """The window from this frame on, as encoders read it: `[window_frames / 2, 2 * num_mel_bins]`."""
        window = self.log_mel.cut_window(heard.features, begin)
        return window.reshape(-1, 2 * self.log_mel.num_mel_bins)
