"""Attention over a paged cache by rows, for tokens that are generated and for chunks of prompts alike.

A program computes some tokens of a sequence with the heads of q that share one of k, which together are the rows of one
tile: so keys are read once for all of them. Where there are fewer programs than a device runs at once, as while few
sequences are generated, the keys are split among several, and their results joined by a second kernel (Flash-Decoding:
Dao et al., 2023). How long a sequence may be the launcher knows from the width of the block table.
"""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.backends.cuda.cache import view_layer
from runtime.backends.cuda.rotate import load_turned
from runtime.backends.cuda.softmax import LOG2_E, add_keys, divide_weights, matrix_precision
from runtime.backends.cuda.tiles import Tile, count_tiles, find_sequence, load_rows, round_power
from runtime.kv_cache.blocks import BLOCK_SIZE

TILES: Mapping[str, Mapping[int, Tile]] = {
    "half": {
        32: Tile(64, 64, 8, 2, 255),
        64: Tile(64, 64, 8, 2, 255),
        128: Tile(64, 64, 8, 2, 255),
        256: Tile(32, 32, 4, 2, 255),
    },
    "half int8": {
        32: Tile(64, 32, 8, 2, 255),
        64: Tile(64, 32, 8, 2, 255),
        128: Tile(64, 32, 8, 2, 255),
        256: Tile(32, 32, 8, 2, 255),
    },
    "full": {
        32: Tile(16, 32, 4, 2, 255),
        64: Tile(32, 32, 8, 2),
        128: Tile(16, 16, 8, 1, 255),
        256: Tile(16, 16, 8, 1),
    },
}
"""By head_dim, rounded up. Rows: tokens times heads. Half: of 16-bit types, over a cache of int8 or another; full: of
fp32."""
PROGRAMS = 512
"""About as many as the largest devices run at once."""
LEAST_KEYS = 256
"""Of a split."""
MAX_SPLITS = 64


@triton.jit
def load_queries(rows, dims, is_row, angles, ROTARY_DIM: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Turned where there are angles."""
    if angles is None:
        return load_rows(rows, dims, is_row, HEAD_DIM, BLOCK_DIM)
    else:
        turned = load_turned(rows, dims, is_row, angles, HEAD_DIM, ROTARY_DIM)
        return turned.to(rows.dtype.element_ty)


@triton.jit
def see_keys(keys, places, low, high, window, CAUSAL: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """Which keys [1, n] tokens that stand at `places` [m, 1] see."""
    is_seen = (keys >= low) & (keys < high)
    if CAUSAL:
        is_seen = is_seen & (keys <= places)
    if HAS_WINDOW:
        is_seen = is_seen & (keys >= places - window)
    return is_seen


@triton.jit
def cap(scores, softcap):
    """softcap * tanh(scores / softcap)."""
    return softcap - 2 * softcap / (tl.exp2(scores * (2 * LOG2_E / softcap)) + 1)


@triton.jit(do_not_specialize=["num_seqs", "num_steps", "num_parts", "num_tokens", "window", "reach"])
def paged_attention_kernel(
    q,
    keys,
    values,
    key_scales,
    value_scales,
    out,
    partial,
    log_sums,
    block_table,
    cu_seqlens,
    cache_seqlens,
    position_ids,
    rotary,
    bias,
    stride_q,
    stride_q_head,
    stride_block,
    stride_head,
    stride_scales,
    stride_scales_head,
    stride_table,
    stride_out,
    stride_out_head,
    num_tokens,
    num_heads,
    num_seqs,
    num_steps,
    num_parts,
    split_keys,
    softmax_scale,
    softcap,
    window,
    reach,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PART: tl.constexpr,
    PAGE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows are `HEADS` of the `GROUP` heads that share keys, for each token; a group that is too large comes in
    `num_parts`."""
    TOKENS: tl.constexpr = BLOCK_ROWS // HEADS
    seq, first = find_sequence(cu_seqlens, tl.program_id(0), num_seqs, num_steps, TOKENS)
    kv_head = tl.program_id(1) // num_parts
    begin_q = tl.load(cu_seqlens + seq).to(tl.int64)
    len_q = (tl.load(cu_seqlens + seq + 1) - begin_q).to(tl.int32)
    if first >= len_q:
        return
    len_k = tl.load(cache_seqlens + seq)
    shift = len_k - len_q
    low = tl.program_id(2) * split_keys
    high = tl.minimum(low + split_keys, len_k)
    if CAUSAL:
        high = tl.minimum(high, tl.minimum(first + TOKENS, len_q) + shift)
    if HAS_WINDOW:
        low = tl.maximum(low, first + shift - window)

    rows = tl.arange(0, BLOCK_ROWS)[:, None]
    in_group = tl.program_id(1) % num_parts * HEADS + rows % HEADS
    tokens = first + rows // HEADS
    is_row = (rows < TOKENS * HEADS) & (tokens < len_q) & (in_group < GROUP)
    places = tokens + shift
    heads = kv_head * GROUP + in_group
    tokens = begin_q + tokens
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    rows_q = q + tokens * stride_q + heads * stride_q_head
    angles = rotary
    if rotary is not None:
        angles += tl.load(position_ids + tokens, mask=is_row, other=0) * ROTARY_DIM
    if PART == BLOCK_DIM:
        tile_q = load_queries(rows_q, dims, is_row, angles, ROTARY_DIM, HEAD_DIM, BLOCK_DIM)
    acc = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    top = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    for start in range(low // BLOCK_KEYS * BLOCK_KEYS, high, BLOCK_KEYS):
        slots = start + tl.arange(0, BLOCK_KEYS)[:, None]
        # Blocks that lie before all windows may be somebody else's by now.
        is_key = (slots >= low) & (slots < high)
        blocks = tl.load(block_table + seq * stride_table + slots // PAGE, mask=is_key, other=0).to(tl.int64)
        begins = blocks * stride_block + kv_head * stride_head + slots % PAGE * HEAD_DIM
        scores = tl.zeros([BLOCK_ROWS, BLOCK_KEYS], tl.float32)
        for part in tl.static_range(0, BLOCK_DIM, PART):
            # Whole heads of q stay in registers, where these hold them.
            part_dims = part + tl.arange(0, PART)[None, :]
            if PART != BLOCK_DIM:
                tile_q = load_queries(rows_q, part_dims, is_row, angles, ROTARY_DIM, HEAD_DIM, BLOCK_DIM)
            tile_k = load_rows(keys + begins, part_dims, is_key, HEAD_DIM, BLOCK_DIM).to(tile_q.dtype)
            scores = tl.dot(tile_q, tl.trans(tile_k), scores, input_precision=PRECISION)
        scores *= softmax_scale
        tile_v = load_rows(values + begins, dims, is_key, HEAD_DIM, BLOCK_DIM)
        if key_scales is not None:
            begins = blocks * stride_scales + kv_head * stride_scales_head + slots % PAGE
            scores *= tl.trans(tl.load(key_scales + begins, mask=is_key, other=0.0))
            tile_v = tile_v.to(tl.float32) * tl.load(value_scales + begins, mask=is_key, other=0.0)
        if HAS_SOFTCAP:
            scores = cap(scores, softcap)
        columns = start + tl.arange(0, BLOCK_KEYS)[None, :]
        is_seen = see_keys(columns, places, low, high, window, CAUSAL, HAS_WINDOW)
        if bias is not None:
            scores += tl.load(bias + heads * reach + places - columns, mask=is_row & is_seen, other=0.0)
        scores = tl.where(is_seen, scores * LOG2_E, float("-inf"))
        acc, top, total = add_keys(acc, top, total, scores, tile_v.to(q.dtype.element_ty), PRECISION)
    result = divide_weights(acc, total)
    is_element = is_row & (dims < HEAD_DIM)
    if partial is None:
        result = result.to(out.dtype.element_ty)
        tl.store(out + tokens * stride_out + heads * stride_out_head + dims, result, mask=is_element)
    else:
        index = (tl.program_id(2).to(tl.int64) * num_tokens + tokens) * num_heads + heads
        tl.store(log_sums + index, (top + tl.log2(total))[:, None], mask=is_row)
        tl.store(partial + index * HEAD_DIM + dims, result, mask=is_element & (low < high))


@triton.jit(do_not_specialize=["num_splits"])
def join_splits_kernel(
    partial,
    log_sums,
    out,
    stride_out,
    stride_out_head,
    num_splits,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """One head of one token: the mean of its parts, weighted by the sums that they were divided by."""
    token, head = tl.program_id(0), tl.program_id(1)
    splits = tl.arange(0, BLOCK_SPLITS)[:, None].to(tl.int64)
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    index = (splits * tl.num_programs(0) + token) * tl.num_programs(1) + head
    sums = tl.load(log_sums + index, mask=splits < num_splits, other=float("-inf"))
    top = tl.max(sums, 0)
    weights = tl.exp2(sums - tl.where(top == float("-inf"), 0.0, top)[None, :])
    # Parts without keys were never written.
    is_part = (sums != float("-inf")) & (dims < HEAD_DIM)
    parts = tl.load(partial + index * HEAD_DIM + dims, mask=is_part, other=0.0)
    total = tl.sum(weights, 0)
    mean = tl.sum(weights * parts, 0) / tl.where(total == 0.0, 1.0, total)
    columns = tl.arange(0, BLOCK_DIM)
    places = out + token.to(tl.int64) * stride_out + head * stride_out_head + columns
    tl.store(places, mean.to(out.dtype.element_ty), mask=columns < HEAD_DIM)


def choose_tile(head_dim: int, dtype: torch.dtype, cache_dtype: torch.dtype, num_rows: int) -> Tile:
    """Of no more rows than a sequence fills. How many keys it takes at a time depends on the model alone."""
    kind = "full" if dtype == torch.float32 else "half int8" if cache_dtype == torch.int8 else "half"
    return TILES[kind][round_power(head_dim, 32)].cut(num_rows)


def choose_split(num_programs: int, max_keys: int) -> int:
    """Keys of a split: a power of two, or all where the programs without splits are enough."""
    wanted = min(PROGRAMS // num_programs, MAX_SPLITS)
    if wanted < 2:
        return round_power(max_keys, LEAST_KEYS)
    return round_power(triton.cdiv(max_keys, wanted), LEAST_KEYS)


def paged_attention(
    q: Tensor,
    kv_cache: Tensor,
    layer: int,
    block_table: Tensor,
    cu_seqlens: Tensor,
    cache_seqlens: Tensor,
    max_seqlen: int,
    softmax_scale: float,
    position_ids: Tensor | None = None,
    rotary: Tensor | None = None,
    causal: bool = True,
    window: int = -1,
    softcap: float = 0.0,
    bias: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    """Raises ValueError where the cache does not lie by rows."""
    num_tokens, num_heads, head_dim = q.shape
    views = view_layer(kv_cache, layer)
    num_seqs, num_kv_heads, max_keys = len(cache_seqlens), kv_cache.shape[3], block_table.shape[1] * BLOCK_SIZE
    group = num_heads // num_kv_heads
    tile = choose_tile(head_dim, q.dtype, kv_cache.dtype, group * max_seqlen)
    heads = min(group, tile.rows)
    num_parts = triton.cdiv(group, heads)
    num_tiles = count_tiles(num_tokens, num_seqs, tile.rows // heads)
    split_keys = choose_split(num_tiles * num_kv_heads * num_parts, max_keys)
    num_splits = triton.cdiv(max_keys, split_keys)
    partial = log_sums = None
    if num_splits > 1:
        log_sums = q.new_empty(num_splits, num_tokens, num_heads, dtype=torch.float32)
        partial = q.new_empty(num_splits, num_tokens, num_heads, head_dim, dtype=torch.float32)
    paged_attention_kernel[(num_tiles, num_kv_heads * num_parts, num_splits)](
        q,
        *views,
        out,
        partial,
        log_sums,
        block_table,
        cu_seqlens,
        cache_seqlens,
        position_ids,
        rotary,
        bias,
        *q.stride()[:2],
        *views.strides,
        block_table.stride(0),
        *out.stride()[:2],
        num_tokens,
        num_heads,
        num_seqs,
        num_seqs.bit_length(),
        num_parts,
        split_keys,
        softmax_scale,
        softcap,
        window,
        0 if bias is None else bias.shape[1],
        GROUP=group,
        HEADS=heads,
        CAUSAL=causal,
        HAS_WINDOW=window >= 0,
        HAS_SOFTCAP=softcap > 0,
        ROTARY_DIM=0 if rotary is None else rotary.shape[1],
        HEAD_DIM=head_dim,
        BLOCK_ROWS=tile.rows,
        BLOCK_KEYS=tile.columns,
        BLOCK_DIM=round_power(head_dim, 16),
        PART=16 if q.dtype == torch.float32 and head_dim > 64 else round_power(head_dim, 16),
        PAGE=BLOCK_SIZE,
        PRECISION=matrix_precision(q.dtype),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        maxnreg=tile.max_registers,
    )
    if partial is not None:
        join_splits_kernel[(num_tokens, num_heads)](
            partial,
            log_sums,
            out,
            *out.stride()[:2],
            num_splits,
            HEAD_DIM=head_dim,
            BLOCK_DIM=round_power(head_dim),
            BLOCK_SPLITS=round_power(num_splits),
            num_warps=4,
        )
