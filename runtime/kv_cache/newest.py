"""Steps of one token of each sequence: its newest."""

import numpy as np

from runtime.batch import Arrays, Batch, Int32Array, IntArray, Paging, Sampling, Sources
from runtime.kv_cache.blocks import BLOCK_SIZE


def pack_newest(
    token_ids: IntArray,
    positions: IntArray,
    block_table: Int32Array,
    sampling: Sampling,
    sources: Sources | None = None,
) -> Batch:
    """Token i stands at `positions[i]` of the sequence whose blocks are row i of the table; row i of `sampling` chooses
    the one behind it. All that was computed before is in the cache, `sources` too."""
    count = len(token_ids)
    blocks = block_table[np.arange(count), positions // BLOCK_SIZE].astype(np.int64)
    paging = Paging(
        cache_seqlens=(positions + 1).astype(np.int32),
        block_table=block_table,
        slot_mapping=blocks * BLOCK_SIZE + positions % BLOCK_SIZE,
        logit_rows=np.arange(count),
        sampling=sampling,
        sources=sources,
    )
    arrays: Arrays = {"input_ids": token_ids, "position_ids": positions}
    return Batch(arrays, np.arange(count + 1, dtype=np.int32), 1, paging)
