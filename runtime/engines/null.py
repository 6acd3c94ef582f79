"""Computes nothing: sleeps or fails on demand. For tests of the server, and for measuring what HTTP itself costs.

A row depends on its own sequence alone, so a test sees when answers are mixed up.
"""

import time

import numpy as np
import numpy.typing as npt

from runtime.batch import Batch, Output
from runtime.engine import EngineError, EngineInfo, MemoryStats, Progress


class NullEngine:
    """A step that contains `fail_token_id` fails."""

    def __init__(
        self, info: EngineInfo, *, step_ms: float = 0.0, us_per_token: float = 0.0, fail_token_id: int | None = None
    ):
        self.info = info
        self.step_s = step_ms / 1e3
        self.s_per_token = us_per_token / 1e6
        self.fail_token_id = fail_token_id

    def warmup(self, progress: Progress) -> None:
        progress("warming up", 1, 1)

    def run(self, batch: Batch) -> Output:
        sleep_s = self.step_s + self.s_per_token * batch.num_tokens
        if sleep_s:
            time.sleep(sleep_s)
        if self.fail_token_id is not None and self.fail_token_id in batch.input_ids:
            raise EngineError(f"asked to fail by token {self.fail_token_id}")
        return Output(null_rows(batch, self.info.output_dim))

    def memory(self) -> MemoryStats:
        return MemoryStats()

    def trim(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""


def null_rows(batch: Batch, output_dim: int) -> npt.NDArray[np.float32]:
    """Per sequence: its length, its first and last token, and the sum of its tokens, repeated over the row."""
    starts, ends = batch.cu_seqlens[:-1], batch.cu_seqlens[1:]
    facts = np.stack(
        [batch.seqlens, batch.input_ids[starts], batch.input_ids[ends - 1], np.add.reduceat(batch.input_ids, starts)], 1
    )
    repeats = -(-output_dim // facts.shape[1])
    return np.tile(facts, (1, repeats))[:, :output_dim].astype(np.float32)
