"""A decoder's step: copy shared blocks, compute logits over the KV cache, choose the next tokens."""

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from runtime.batch import Batch, Output
from runtime.engine import EngineError, EngineInfo, MemoryStats, Progress
from runtime.engines.transfer import run_warmup, to_output
from runtime.kv_cache.examples import page_alone
from runtime.memory.lifetimes import BatchShape
from runtime.sampling import sample


class Computes(Protocol):
    """What PlannedEngine and ReferenceEngine have in common."""

    info: EngineInfo
    largest: BatchShape

    def compute(self, batch: Batch, **memory: Tensor) -> dict[str, Tensor]: ...

    def prepare(self) -> None: ...

    def memory(self) -> MemoryStats: ...

    def trim(self) -> None: ...

    def close(self) -> None: ...


class DecoderEngine:
    """`inner` computes logits. Mutable: `kv_cache`, as in `runtime.kv_cache.layout`. One caller at a time."""

    def __init__(self, inner: Computes, kv_cache: Tensor, kv_cache_dtype: str) -> None:
        self.inner = inner
        self.kv_cache = kv_cache
        self.kv_cache_dtype = kv_cache_dtype

    @property
    def info(self) -> EngineInfo:
        return replace(
            self.inner.info,
            num_blocks=self.kv_cache.shape[1],
            kv_cache_bytes=self.kv_cache.nbytes,
            kv_cache_dtype=self.kv_cache_dtype,
            max_batch_logits=self.inner.largest.num_logits,
        )

    def warmup(self, progress: Progress) -> None:
        """As PlannedEngine does."""
        self.inner.prepare()
        run_warmup(lambda batch: self.run(self.page(batch)), self.inner.largest, progress)

    def page(self, batch: Batch) -> Batch:
        return page_alone(batch, num_blocks=self.kv_cache.shape[1])

    def run(self, batch: Batch) -> Output:
        assert batch.paging is not None, "A decoder's batch has paging. This is a bug."
        try:
            with torch.inference_mode():
                self.copy_blocks(torch.from_numpy(batch.paging.block_copies).to(self.kv_cache.device))
                outputs = dict(self.inner.compute(batch, kv_cache=self.kv_cache))
                tokens = sample(outputs.pop("logits"), batch.paging.sampling)
                return replace(to_output(outputs), tokens=tokens)
        except (RuntimeError, IndexError) as error:
            raise error if isinstance(error, EngineError) else EngineError(f"sampling failed: {error}") from error

    def copy_blocks(self, copies: Tensor) -> None:
        """In all layers. All are read before any is written: one copy may write where another reads."""
        if len(copies):
            self.kv_cache[:, copies[:, 1]] = self.kv_cache[:, copies[:, 0]]

    def memory(self) -> MemoryStats:
        return replace(self.inner.memory(), kv_cache_bytes=self.kv_cache.nbytes)

    def trim(self) -> None:
        self.inner.trim()

    def close(self) -> None:
        self.inner.close()
