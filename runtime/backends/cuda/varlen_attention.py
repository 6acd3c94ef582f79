"""Packed attention in one pass over the keys (FlashAttention-2: Dao, 2023): scores exist for one tile at a time.

A program computes a tile of queries of one head. Sequences of any lengths are one launch, in which each program finds
its sequence by bisection in `cu_seqlens`: there are at most `num_tokens // rows + num_seqs` tiles, and none for
padding. Keys are read from the first to the last that a tile can see; those that all of its queries see need no masks.

Scores by distance (`position_k`, `position_q`) are products with the rows of all distances between a tile of queries
and one of keys, from which each pair takes its own.
"""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.backends.cuda.softmax import LOG2_E, add_keys, divide_weights, matrix_precision
from runtime.backends.cuda.tiles import Tile, count_tiles, find_sequence, load_rows, round_power
from runtime.ops.varlen_attention import find_reach

TILES: Mapping[str, Mapping[int, Tile]] = {
    "half": {
        32: Tile(128, 64, 8, 2, 255),
        64: Tile(128, 64, 8, 2, 255),
        128: Tile(64, 64, 8, 2, 255),
        256: Tile(64, 32, 8, 2, 255),
    },
    "half biased": {
        32: Tile(64, 64, 8, 2, 255),
        64: Tile(64, 64, 8, 2, 255),
        128: Tile(64, 64, 8, 2, 255),
        256: Tile(32, 32, 8, 2, 255),
    },
    "half by distance": dict.fromkeys((32, 64, 128), Tile(32, 32, 4, 1)) | {256: Tile(16, 16, 4, 1)},
    "full": {32: Tile(64, 16, 8, 2), 64: Tile(64, 16, 8, 2), 128: Tile(16, 32, 8, 2), 256: Tile(16, 16, 8, 1, 255)},
    "full by distance": dict.fromkeys((32, 64, 128), Tile(16, 16, 8, 1)) | {256: Tile(16, 16, 8, 1, 255)},
}
"""By head_dim, rounded up. Half: of 16-bit types; full: of fp32."""


@triton.jit
def score_by_parts(
    rows_q,
    rows_k,
    position_k,
    position_q,
    stride_position_k,
    stride_position_q,
    buckets,
    bucket_reach,
    nearest,
    is_query,
    is_key,
    HEAD_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    NUM_DISTANCES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What queries have with keys, and both with their distances, where that is more than registers hold of whole
    heads. `nearest`: from the tile's last query to its first key, the least distance of all."""
    PART: tl.constexpr = 16 if PRECISION == "tf32x3" or BLOCK_DIM < 32 else 32
    scores = tl.zeros([BLOCK_ROWS, BLOCK_KEYS], tl.float32)
    by_key = tl.zeros([BLOCK_ROWS, NUM_DISTANCES], tl.float32)
    by_query = tl.zeros([NUM_DISTANCES, BLOCK_KEYS], tl.float32)
    if buckets is not None:
        places = nearest + tl.arange(0, NUM_DISTANCES) + bucket_reach - 1
        places = tl.minimum(tl.maximum(places, 0), 2 * bucket_reach - 2)
        rows = tl.load(buckets + places)[:, None].to(tl.int64)
    for begin in tl.static_range(0, BLOCK_DIM, PART):
        dims = begin + tl.arange(0, PART)[None, :]
        q = load_rows(rows_q, dims, is_query, HEAD_DIM, BLOCK_DIM)
        k = load_rows(rows_k, dims, is_key, HEAD_DIM, BLOCK_DIM)
        scores = tl.dot(q, tl.trans(k), scores, input_precision=PRECISION)
        if position_k is not None:
            keys = load_rows(position_k + rows * stride_position_k, dims, rows >= 0, HEAD_DIM, BLOCK_DIM)
            by_key = tl.dot(q, tl.trans(keys.to(q.dtype)), by_key, input_precision=PRECISION)
        if position_q is not None:
            queries = load_rows(position_q + rows * stride_position_q, dims, rows >= 0, HEAD_DIM, BLOCK_DIM)
            by_query = tl.dot(queries.to(k.dtype), tl.trans(k), by_query, input_precision=PRECISION)
    distances = tl.arange(0, BLOCK_KEYS)[None, :] - tl.arange(0, BLOCK_ROWS)[:, None] + BLOCK_ROWS - 1
    if position_k is not None:
        scores += tl.gather(by_key, distances, 1)
    if position_q is not None:
        scores += tl.gather(by_query, distances, 0)
    return scores


@triton.jit
def find_keys(first, last, shift, seen, window, CAUSAL: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """Which of the first `seen` keys queries from `first` to before `last` look at, query i standing at key i + shift:
    from `low` to before `high`. Without a window all of them look at all before `full`."""
    low = seen * 0
    high = seen
    full = seen
    if CAUSAL:
        high = tl.minimum(high, last + shift)
        full = tl.minimum(full, first + shift + 1)
    if HAS_WINDOW:
        low = tl.maximum(low, first + shift - window)
        high = tl.minimum(high, last + shift + window)
    return low, tl.maximum(full, 0), high


@triton.jit
def see_keys(keys, places, seen, window, CAUSAL: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """Which keys [1, n] queries that stand at `places` [m, 1] see."""
    is_seen = keys < seen
    if CAUSAL:
        is_seen = is_seen & (keys <= places)
    if HAS_WINDOW:
        is_seen = is_seen & (keys >= places - window)
        if not CAUSAL:
            is_seen = is_seen & (keys <= places + window)
    return is_seen


@triton.jit(do_not_specialize=["num_seqs", "num_steps", "window", "reach", "bucket_reach"])
def varlen_attention_kernel(
    q,
    k,
    v,
    out,
    cu_seqlens_q,
    cu_seqlens_k,
    num_keys,
    bias,
    position_k,
    position_q,
    buckets,
    stride_q,
    stride_q_head,
    stride_k,
    stride_k_head,
    stride_v,
    stride_v_head,
    stride_out,
    stride_out_head,
    stride_position_k,
    stride_position_k_head,
    stride_position_q,
    stride_position_q_head,
    num_seqs,
    num_steps,
    group,
    softmax_scale,
    window,
    reach,
    bucket_reach,
    FIRST_PART: tl.constexpr,
    BY_PARTS: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    NUM_DISTANCES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    seq, first = find_sequence(cu_seqlens_q, tl.program_id(0), num_seqs, num_steps, BLOCK_ROWS)
    head = tl.program_id(1)
    begin_q = tl.load(cu_seqlens_q + seq).to(tl.int64)
    len_q = (tl.load(cu_seqlens_q + seq + 1) - begin_q).to(tl.int32)
    if first >= len_q:
        return
    begin_k = tl.load(cu_seqlens_k + seq).to(tl.int64)
    len_k = (tl.load(cu_seqlens_k + seq + 1) - begin_k).to(tl.int32)
    shift = len_k - len_q
    seen = len_k
    if num_keys is not None:
        seen = tl.minimum(tl.load(num_keys + seq), len_k)
    last = tl.minimum(first + BLOCK_ROWS, len_q)
    low, full, high = find_keys(first, last, shift, seen, window, CAUSAL, HAS_WINDOW)
    low = low // BLOCK_KEYS * BLOCK_KEYS
    # Where some keys before `full` need masks, or nothing is gained by doing without, all count as needing them.
    full = full // BLOCK_KEYS * BLOCK_KEYS if FIRST_PART == 0 else low

    queries = first + tl.arange(0, BLOCK_ROWS)[:, None]
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    is_query = queries < len_q
    places = queries + shift
    rows_q = q + begin_q * stride_q + head * stride_q_head + queries * stride_q
    if not BY_PARTS:
        tile_q = load_rows(rows_q, dims, is_query, HEAD_DIM, BLOCK_DIM)
    k += begin_k * stride_k + head // group * stride_k_head
    v += begin_k * stride_v + head // group * stride_v_head
    if bias is not None:
        bias += head * (2 * reach - 1) + reach - 1
    if position_k is not None:
        position_k += head * stride_position_k_head
    if position_q is not None:
        position_q += head * stride_position_q_head
    acc = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    top = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    for part in tl.static_range(FIRST_PART, 2):
        # First the keys that all queries see, then those behind them.
        begin = low if part == 0 else full
        end = full if part == 0 else high
        for start in range(begin, end, BLOCK_KEYS):
            rows = start + tl.arange(0, BLOCK_KEYS)[:, None]
            is_key = rows < (end if part == 0 else seen)
            if not BY_PARTS:
                tile_k = load_rows(k + rows * stride_k, dims, is_key, HEAD_DIM, BLOCK_DIM)
                scores = tl.dot(tile_q, tl.trans(tile_k), input_precision=PRECISION)
            else:
                scores = score_by_parts(
                    rows_q,
                    k + rows * stride_k,
                    position_k,
                    position_q,
                    stride_position_k,
                    stride_position_q,
                    buckets,
                    bucket_reach,
                    start - (first + BLOCK_ROWS - 1 + shift),
                    is_query,
                    is_key,
                    HEAD_DIM,
                    BLOCK_ROWS,
                    BLOCK_KEYS,
                    BLOCK_DIM,
                    NUM_DISTANCES,
                    PRECISION,
                )
            scores *= softmax_scale * LOG2_E
            keys = start + tl.arange(0, BLOCK_KEYS)[None, :]
            if bias is not None:
                is_near = is_query & (keys < seen)
                scores += tl.load(bias + (keys - places), mask=is_near, other=0.0) * LOG2_E
            if part == 1:
                is_seen = see_keys(keys, places, seen, window, CAUSAL, HAS_WINDOW)
                scores = tl.where(is_seen, scores, float("-inf"))
            tile_v = load_rows(v + rows * stride_v, dims, is_key, HEAD_DIM, BLOCK_DIM)
            acc, top, total = add_keys(acc, top, total, scores, tile_v, PRECISION)
    rows_out = out + begin_q * stride_out + head * stride_out_head + queries * stride_out
    result = divide_weights(acc, total).to(out.dtype.element_ty)
    tl.store(rows_out + dims, result, mask=is_query & (dims < HEAD_DIM))


def choose_tile(head_dim: int, dtype: torch.dtype, has_bias: bool, has_buckets: bool, max_seqlen_q: int) -> Tile:
    """Of no more rows than the longest sequence fills. How many keys it takes at a time depends on the model alone, and
    so does the order of every sum."""
    kind = "full" if dtype == torch.float32 else "half"
    if has_buckets:
        kind += " by distance"
    elif has_bias and kind == "half":
        kind += " biased"
    return TILES[kind][round_power(head_dim, 32)].cut(max_seqlen_q)


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool = False,
    window: int = -1,
    bias: Tensor | None = None,
    num_keys: Tensor | None = None,
    position_k: Tensor | None = None,
    position_q: Tensor | None = None,
    buckets: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    """Raises ValueError where a sequence is over the reach of `bias` or `buckets`."""
    num_heads, head_dim = q.shape[1:]
    num_seqs = len(cu_seqlens_q) - 1
    tile = choose_tile(head_dim, q.dtype, bias is not None, buckets is not None, max_seqlen_q)
    longest = max(max_seqlen_q, max_seqlen_k)
    reach, bucket_reach = (0 if table is None else find_reach(table, longest) for table in (bias, buckets))
    varlen_attention_kernel[(count_tiles(len(q), num_seqs, tile.rows), num_heads)](
        q,
        k,
        v,
        out,
        cu_seqlens_q,
        cu_seqlens_k,
        num_keys,
        bias,
        position_k,
        position_q,
        buckets,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        *out.stride()[:2],
        *head_strides(position_k),
        *head_strides(position_q),
        num_seqs,
        num_seqs.bit_length(),
        num_heads // k.shape[1],
        softmax_scale,
        window,
        reach,
        bucket_reach,
        FIRST_PART=int(window >= 0 or buckets is not None),
        BY_PARTS=buckets is not None or (q.dtype == torch.float32 and head_dim > 128),
        CAUSAL=causal,
        HAS_WINDOW=window >= 0,
        HEAD_DIM=head_dim,
        BLOCK_ROWS=tile.rows,
        BLOCK_KEYS=tile.columns,
        BLOCK_DIM=round_power(head_dim, 16),
        NUM_DISTANCES=round_power(tile.rows + tile.columns),
        PRECISION=matrix_precision(q.dtype),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        maxnreg=tile.max_registers,
    )


def head_strides(table: Tensor | None) -> tuple[int, int]:
    """From row to row, and from head to head: 0 where there is one for all."""
    return (0, 0) if table is None else (table.stride(0), table.stride(1) if table.shape[1] > 1 else 0)
