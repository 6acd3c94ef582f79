"""A decoder's step: copy shared blocks, encode new sources, compute logits over the cache, choose next tokens."""

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from runtime.batch import Batch, Output
from runtime.engine import EngineError, EngineInfo, MemoryStats, OutOfMemory, Progress
from runtime.engines.failures import empty_cache, explain_failure
from runtime.engines.token_counts import TokenCounts
from runtime.engines.transfer import run_warmup, to_output
from runtime.kv_cache.examples import page_alone, place_source
from runtime.memory.lifetimes import BatchShape
from runtime.sampling import sample
from runtime.sampling_filters import DrawTokens, draw_tokens


class Computes(Protocol):
    """What PlannedEngine and ReferenceEngine have in common."""

    info: EngineInfo
    largest: BatchShape
    num_features: int

    def compute(self, batch: Batch, **memory: Tensor) -> dict[str, Tensor]: ...

    def prepare(self, progress: Progress, **memory: Tensor) -> None: ...

    def memory(self) -> MemoryStats: ...

    def trim(self) -> None: ...

    def close(self) -> None: ...


class DecoderEngine:
    """`inner` computes logits; `encoder`, of an encoder-decoder, writes what it makes of sources into the cache; `draw`
    takes random tokens where they are wanted; `counts` are what penalties need, where the device keeps them.

    Mutable: `kv_cache`, as in `runtime.kv_cache.layout`. One caller at a time.
    """

    def __init__(
        self,
        inner: Computes,
        kv_cache: Tensor,
        kv_cache_dtype: str,
        encoder: Computes | None = None,
        draw: DrawTokens = draw_tokens,
        counts: TokenCounts | None = None,
    ) -> None:
        self.inner = inner
        self.encoder = encoder
        self.programs = (inner,) if encoder is None else (inner, encoder)
        self.kv_cache = kv_cache
        self.draw = draw
        self.penalise = None if counts is None else counts.penalise
        self.info = replace(
            inner.info if encoder is None else join_infos(inner.info, encoder.info),
            num_blocks=kv_cache.shape[1],
            kv_cache_bytes=kv_cache.nbytes,
            kv_cache_dtype=kv_cache_dtype,
            max_batch_logits=inner.largest.num_logits,
            num_counters=0 if counts is None else counts.num_counters,
            counter_bytes=0 if counts is None else counts.planned_bytes,
        )

    def warmup(self, progress: Progress) -> None:
        """As PlannedEngine does."""
        self.inner.prepare(progress, kv_cache=self.kv_cache)
        run_warmup(lambda batch: self.run(self.page(batch)), self.inner.largest, progress)
        if self.encoder is not None:
            self.encoder.prepare(progress, kv_cache=self.kv_cache)
            width = self.encoder.num_features
            run_warmup(lambda batch: self.encode(place_source(batch, width)), self.encoder.largest, progress)

    def page(self, batch: Batch) -> Batch:
        return page_alone(batch, num_blocks=self.kv_cache.shape[1])

    def run(self, batch: Batch) -> Output:
        assert batch.paging is not None, "A decoder's batch has paging. This is a bug."
        try:
            with torch.inference_mode():
                if len(batch.paging.block_copies):
                    self.copy_blocks(torch.from_numpy(batch.paging.block_copies).to(self.kv_cache.device))
                if batch.paging.sources is not None and batch.paging.sources.batch is not None:
                    self.encode(batch.paging.sources.batch)
                outputs = dict(self.inner.compute(batch, kv_cache=self.kv_cache))
                tokens = sample(outputs.pop("logits"), batch.paging.sampling, self.draw, self.penalise)
                return replace(to_output(outputs), tokens=tokens)
        except EngineError:
            raise
        except (RuntimeError, IndexError) as error:
            failure = explain_failure(error, "sampling failed")
            if isinstance(failure, OutOfMemory):
                empty_cache()
            raise failure from error

    def encode(self, sources: Batch) -> None:
        """Into the cache, where `slot_mapping` says."""
        assert self.encoder is not None, "Only encoder-decoders have sources. This is a bug."
        self.encoder.compute(sources, kv_cache=self.kv_cache)

    def copy_blocks(self, copies: Tensor) -> None:
        """In all layers. All are read before any is written: one copy may write where another reads."""
        self.kv_cache[:, copies[:, 1]] = self.kv_cache[:, copies[:, 0]]

    def memory(self) -> MemoryStats:
        stats = self.inner.memory() if self.encoder is None else self.inner.memory().plus(self.encoder.memory())
        return replace(stats, kv_cache_bytes=self.kv_cache.nbytes)

    def trim(self) -> None:
        for each in self.programs:
            each.trim()

    def close(self) -> None:
        for each in self.programs:
            each.close()


def join_infos(decoder: EngineInfo, encoder: EngineInfo) -> EngineInfo:
    """Of both programs together, which take turns."""
    return replace(
        decoder,
        weight_bytes=decoder.weight_bytes + encoder.weight_bytes,
        activation_bytes=decoder.activation_bytes + encoder.activation_bytes,
        graph_bytes=decoder.graph_bytes + encoder.graph_bytes,
        max_batch_tokens=min(decoder.max_batch_tokens, encoder.max_batch_tokens),
        unplanned_ops=encoder.unplanned_ops + decoder.unplanned_ops,
    )
