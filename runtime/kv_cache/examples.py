"""Batches for decoders that belong to no request: for warming up, timing, observing and canaries. Pure numpy."""

from dataclasses import replace

import numpy as np

from runtime.batch import NO_TOKEN, Batch, Paging, Sampling, Sources
from runtime.kv_cache.blocks import BLOCK_SIZE, SCRATCH_BLOCK, count_blocks


def page_alone(batch: Batch, *, num_blocks: int, past: int = 0, every_token: bool = False) -> Batch:
    """The batch as a decoder takes it: each sequence new, or behind `past` tokens of whatever lies in the cache, and
    an answer to no source.

    Blocks are used over and over where there are not enough, so what is computed means nothing then. `every_token`:
    logits after each of them, else after each sequence's last.
    """
    lengths = batch.seqlens + past
    needed = -(-lengths // BLOCK_SIZE)
    max_blocks = max(int(needed.max()), 2)
    first = np.cumsum(needed) - needed
    usable = max(num_blocks - 1, 1)
    table = (first[:, None] + np.arange(max_blocks)[None, :]) % usable + (1 if num_blocks > 1 else 0)
    table = np.where(np.arange(max_blocks)[None, :] < needed[:, None], table, SCRATCH_BLOCK).astype(np.int32)
    positions = batch.arrays["position_ids"] + past
    owner = np.repeat(np.arange(batch.num_seqs), batch.seqlens)
    slots = table[owner, positions // BLOCK_SIZE].astype(np.int64) * BLOCK_SIZE + positions % BLOCK_SIZE
    rows = np.arange(batch.num_tokens) if every_token else batch.cu_seqlens[1:].astype(np.int64) - 1
    sources = Sources(np.full((batch.num_seqs, 1), SCRATCH_BLOCK, np.int32), np.zeros(batch.num_seqs, np.int32))
    paging = Paging(lengths.astype(np.int32), table, slots, rows, sample_greedily(len(rows)), sources=sources)
    return replace(batch, arrays=batch.arrays | {"position_ids": positions}, paging=paging)


def count_needed(batch: Batch) -> int:
    """Blocks for all of its sequences, and the scratch block."""
    return 1 + sum(count_blocks(seqlen) for seqlen in batch.seqlens.tolist())


def answer_sources(batch: Batch, sources: Batch) -> Batch:
    """The batch, as `page_alone` has given it as many blocks as it needs, with sequence i the answer to source i, and
    over again where they are fewer: all new, encoded into the blocks behind its own. `sources`: what their encoder
    reads but `slot_mapping`."""
    assert batch.paging is not None, "A decoder's batch has paging. This is a bug."
    first = int(batch.paging.block_table.max())
    placed = page_alone(sources, num_blocks=count_needed(sources)).paging
    assert placed is not None
    table = np.where(placed.block_table != SCRATCH_BLOCK, placed.block_table + first, SCRATCH_BLOCK).astype(np.int32)
    slots = placed.slot_mapping + first * BLOCK_SIZE
    chosen = np.arange(batch.num_seqs) % sources.num_seqs
    new = replace(sources, arrays=sources.arrays | {"slot_mapping": slots})
    answered = Sources(table[chosen], placed.cache_seqlens[chosen], batch=new)
    return replace(batch, paging=replace(batch.paging, sources=answered))


def place_source(batch: Batch, num_features: int) -> Batch:
    """The batch as an encoder of sources takes it, of `num_features` numbers for each token, all written to the scratch
    block."""
    features = np.zeros((batch.num_tokens, num_features), np.float32)
    slots = np.arange(batch.num_tokens, dtype=np.int64) % BLOCK_SIZE + SCRATCH_BLOCK * BLOCK_SIZE
    return replace(batch, arrays=batch.arrays | {"features": features, "slot_mapping": slots})


def sample_greedily(num_logits: int) -> Sampling:
    """The most probable token of every row, and nothing else."""
    zeros, ones = np.zeros(num_logits, np.float32), np.ones(num_logits, np.float32)
    return Sampling(
        temperature=zeros,
        top_k=np.zeros(num_logits, np.int32),
        top_p=ones,
        min_p=zeros,
        uniforms=np.zeros(num_logits),
        repetition_penalty=ones,
        presence_penalty=zeros,
        frequency_penalty=zeros,
        num_top=np.full(num_logits, -1, np.int32),
        forced_ids=np.full(num_logits, NO_TOKEN, np.int64),
        is_ranked=np.zeros(num_logits, bool),
    )
