"""Keys and values into a paged cache by rows, keys turned on the way: a program stores one head of some tokens."""

import triton
import triton.language as tl
from torch import Tensor

from runtime.backends.cuda.cache import view_layer
from runtime.backends.cuda.quantized_rows import round_to_even
from runtime.backends.cuda.rotate import load_turned
from runtime.backends.cuda.tiles import Tile, load_rows, round_power
from runtime.kv_cache.blocks import BLOCK_SIZE

TILE = Tile(rows=16)


@triton.jit
def store_tile(rows, cache, scales, places, scale_places, is_there, is_element):
    """Rows [n, dim] in fp32 or their own type. Of int8 with their scales."""
    if scales is not None:
        rows = rows.to(tl.float32)
        scale = tl.maximum(tl.div_rn(tl.max(tl.abs(rows), 1), 127.0), 1.1754943508222875e-38)[:, None]
        tl.store(scales + scale_places, scale, mask=is_there)
        rows = round_to_even(tl.div_rn(rows, tl.broadcast_to(scale, rows.shape)))
        rows = tl.minimum(tl.maximum(rows, -127.0), 127.0)
    tl.store(cache + places, rows.to(cache.dtype.element_ty), mask=is_element)


@triton.jit(do_not_specialize=["num_tokens"])
def store_kv_kernel(
    k,
    v,
    keys,
    values,
    key_scales,
    value_scales,
    slot_mapping,
    position_ids,
    rotary,
    stride_k,
    stride_k_head,
    stride_v,
    stride_v_head,
    stride_block,
    stride_head,
    stride_scales,
    stride_scales_head,
    num_tokens,
    ROTARY_DIM: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PAGE: tl.constexpr,
):
    tokens = (tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)[:, None]).to(tl.int64)
    head = tl.program_id(1)
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    is_token = tokens < num_tokens
    slots = tl.load(slot_mapping + tokens, mask=is_token, other=0)
    blocks, offsets = slots // PAGE, slots % PAGE
    places = blocks * stride_block + head * stride_head + offsets * HEAD_DIM + dims
    scale_places = blocks * stride_scales + head * stride_scales_head + offsets
    rows_k = k + tokens * stride_k + head * stride_k_head
    if rotary is not None:
        angles = rotary + tl.load(position_ids + tokens, mask=is_token, other=0) * ROTARY_DIM
        tile_k = load_turned(rows_k, dims, is_token, angles, HEAD_DIM, ROTARY_DIM).to(k.dtype.element_ty)
    else:
        tile_k = load_rows(rows_k, dims, is_token, HEAD_DIM, BLOCK_DIM)
    tile_v = load_rows(v + tokens * stride_v + head * stride_v_head, dims, is_token, HEAD_DIM, BLOCK_DIM)
    is_element = is_token & (dims < HEAD_DIM)
    store_tile(tile_k, keys, key_scales, places, scale_places, is_token, is_element)
    store_tile(tile_v, values, value_scales, places, scale_places, is_token, is_element)


def store_kv(
    k: Tensor,
    v: Tensor,
    kv_cache: Tensor,
    layer: int,
    slot_mapping: Tensor,
    position_ids: Tensor | None = None,
    rotary: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    """`out` has no elements. Raises ValueError where the cache does not lie by rows."""
    num_tokens, num_kv_heads, head_dim = k.shape
    views = view_layer(kv_cache, layer)
    store_kv_kernel[(triton.cdiv(num_tokens, TILE.rows), num_kv_heads)](
        k,
        v,
        *views,
        slot_mapping,
        position_ids,
        rotary,
        *k.stride()[:2],
        *v.stride()[:2],
        *views.strides,
        num_tokens,
        ROTARY_DIM=0 if rotary is None else rotary.shape[1],
        HEAD_DIM=head_dim,
        BLOCK_TOKENS=TILE.rows,
        BLOCK_DIM=round_power(head_dim),
        PAGE=BLOCK_SIZE,
        num_warps=TILE.num_warps,
        num_stages=TILE.num_stages,
    )
