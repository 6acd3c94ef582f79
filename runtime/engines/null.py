"""Computes nothing: sleeps or fails on demand. For tests of the server, and for measuring what HTTP itself costs.

A row depends on its own sequence alone, so a test sees when answers are mixed up.
"""

import math
import time

import numpy as np
import numpy.typing as npt

from runtime.batch import ArraySpec, Batch, FloatArray, Output
from runtime.engine import EngineError, EngineInfo, MemoryStats, Progress


class NullEngine:
    """A step that contains `fail_token_id` fails; a row of a sequence that contains `nan_token_id` is NaN.

    `max_steps`: so many succeed, and then none; None: all do. Mutable: how many have been run.
    """

    def __init__(
        self,
        info: EngineInfo,
        *,
        step_ms: float = 0.0,
        us_per_token: float = 0.0,
        fail_token_id: int | None = None,
        nan_token_id: int | None = None,
        max_steps: int | None = None,
    ) -> None:
        self.info = info
        self.step_s = step_ms / 1e3
        self.s_per_token = us_per_token / 1e6
        self.fail_token_id, self.nan_token_id = fail_token_id, nan_token_id
        self.max_steps, self.num_steps = max_steps, 0

    def warmup(self, progress: Progress) -> None:
        progress("warming up", 1, 1)

    def run(self, batch: Batch) -> Output:
        sleep_s = self.step_s + self.s_per_token * batch.num_tokens
        if sleep_s:
            time.sleep(sleep_s)
        if self.fail_token_id is not None and self.fail_token_id in batch.arrays["input_ids"]:
            raise EngineError(f"asked to fail by token {self.fail_token_id}")
        self.num_steps += 1
        if self.max_steps is not None and self.num_steps > self.max_steps:
            raise EngineError(f"asked to fail after {self.max_steps} steps")
        wanted = [spec for spec in self.info.outputs if batch.outputs is None or spec.name in batch.outputs]
        return Output({spec.name: self.make_rows(batch, spec) for spec in wanted})

    def make_rows(self, batch: Batch, spec: ArraySpec) -> FloatArray:
        rows = make_rows(batch, spec)
        if self.nan_token_id is not None:
            is_nan = batch.arrays["input_ids"] == self.nan_token_id
            if spec.dims[0] == "num_seqs":
                is_nan = np.logical_or.reduceat(is_nan, batch.cu_seqlens[:-1])
            elif spec.dims[0] == "num_logits":
                is_nan = is_nan[batch.arrays["logit_rows"]]
            rows[is_nan] = np.nan
        return rows

    def memory(self) -> MemoryStats:
        return MemoryStats()

    def trim(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""


def make_rows(batch: Batch, spec: ArraySpec) -> FloatArray:
    """Facts of each sequence, or of each token where the rows are tokens', repeated over the row."""
    facts = list_facts(batch) if spec.dims[0] == "num_seqs" else list_token_facts(batch)
    if spec.dims[0] == "num_logits":
        facts = facts[batch.arrays["logit_rows"]]
    sizes = [int(dim) for dim in spec.dims[1:]]
    return np.resize(facts.T, (math.prod(sizes), len(facts))).T.reshape(-1, *sizes).astype(np.float32)


def list_facts(batch: Batch) -> npt.NDArray[np.int64]:
    """Per sequence: its length, its first and last token, and the sum of its tokens."""
    starts, ends, input_ids = batch.cu_seqlens[:-1], batch.cu_seqlens[1:], batch.arrays["input_ids"]
    return np.stack([batch.seqlens, input_ids[starts], input_ids[ends - 1], np.add.reduceat(input_ids, starts)], 1)


def list_token_facts(batch: Batch) -> npt.NDArray[np.int64]:
    """Per token: what it is, its position, and the length of its sequence."""
    positions = np.arange(batch.num_tokens) - np.repeat(batch.cu_seqlens[:-1], batch.seqlens)
    return np.stack([batch.arrays["input_ids"], positions, np.repeat(batch.seqlens, batch.seqlens)], 1)
