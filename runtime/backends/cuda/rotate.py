"""Rotary positions: a program turns one head of some tokens."""

import triton
import triton.language as tl
from torch import Tensor

from runtime.backends.cuda.tiles import Tile, round_power

TILE = Tile(rows=16)


@triton.jit
def load_turned(rows, dims, is_there, angles, head_dim, ROTARY_DIM: tl.constexpr):
    """Heads [rows, dims] in fp32, turned by the angles of each row. `rows`, `angles`: where each row begins; pointers
    [rows, 1]. `is_there`: [rows, 1]."""
    HALF: tl.constexpr = ROTARY_DIM // 2
    x = tl.load(rows + dims, mask=is_there & (dims < head_dim), other=0.0).to(tl.float32)
    turns = is_there & (dims < ROTARY_DIM)
    is_first = dims < HALF
    partner = tl.load(rows + tl.where(is_first, dims + HALF, dims - HALF), mask=turns, other=0.0).to(tl.float32)
    angle = tl.where(is_first, dims, dims - HALF)
    cos = tl.load(angles + angle, mask=turns, other=1.0)
    sin = tl.load(angles + HALF + angle, mask=turns, other=0.0)
    return x * cos + partner * tl.where(is_first, -sin, sin)


@triton.jit
def rotate_kernel(
    x,
    position_ids,
    table,
    out,
    num_tokens,
    stride_token,
    stride_head,
    stride_out_token,
    stride_out_head,
    head_dim,
    ROTARY_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    tokens = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)[:, None]
    head = tl.program_id(1)
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    is_there = tokens < num_tokens
    positions = tl.load(position_ids + tokens, mask=is_there, other=0)
    rows = x + tokens.to(tl.int64) * stride_token + head * stride_head
    turned = load_turned(rows, dims, is_there, table + positions * ROTARY_DIM, head_dim, ROTARY_DIM)
    places = out + tokens.to(tl.int64) * stride_out_token + head * stride_out_head + dims
    tl.store(places, turned.to(out.dtype.element_ty), mask=is_there & (dims < head_dim))


def rotate(x: Tensor, position_ids: Tensor, table: Tensor, *, out: Tensor) -> None:
    num_tokens, num_heads, head_dim = x.shape
    grid = (triton.cdiv(num_tokens, TILE.rows), num_heads)
    rotate_kernel[grid](
        x,
        position_ids,
        table,
        out,
        num_tokens,
        *x.stride()[:2],
        *out.stride()[:2],
        head_dim,
        ROTARY_DIM=table.shape[1],
        BLOCK_TOKENS=TILE.rows,
        BLOCK_DIM=round_power(head_dim),
        num_warps=TILE.num_warps,
        num_stages=TILE.num_stages,
    )
