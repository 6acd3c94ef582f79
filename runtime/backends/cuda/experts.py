"""Experts: tokens sorted by their experts, and each of the two layers of all experts in one launch.

Which expert a tile of rows belongs to is found on the device, from the sorted ids: nobody waits to learn how many rows
an expert has. The launch is as large as it can become, and what is too much of it ends at once (after MegaBlocks, Gale
et al., 2023).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.backends.cuda.activations import activate
from runtime.backends.cuda.epilogue import scale_sums
from runtime.backends.cuda.gemm import GemmTile, find_depth
from runtime.backends.cuda.multiply import multiply
from runtime.backends.cuda.quantized_rows import new_quantized_rows
from runtime.backends.cuda.rows import to_rows
from runtime.backends.cuda.tiles import round_power

TILES = (GemmTile(64, 64, num_warps=4, num_stages=4), GemmTile(16, 64, num_warps=4, num_stages=4))
"""For many rows of each expert, and for few."""
BLOCK = 1024


class Weights(NamedTuple):
    """Of one layer of all experts; `scale` and `sums` of int8."""

    values: Tensor
    scale: Tensor | None
    sums: Tensor | None


class Routes(NamedTuple):
    """Where tokens go. A pair is a token and one of its experts, number token * top_k + rank; int32 all but weights."""

    weights: Tensor
    """fp32 [num_pairs]."""
    order: Tensor
    """[num_pairs], by expert."""
    ends: Tensor
    """[num_experts], of each expert's pairs in that order."""
    tile_ends: Tensor
    """[num_experts], of its tiles of rows."""
    tile: GemmTile


@triton.jit
def route_kernel(scores, weights, chosen, num_experts, top_k, RENORMALIZE: tl.constexpr, BLOCK: tl.constexpr):
    """One token: the largest probabilities and whose they are, of equal ones the first. NaN gives NaN for a weight."""
    token = tl.program_id(0).to(tl.int64)
    experts = tl.arange(0, BLOCK)
    is_expert = experts < num_experts
    score = tl.load(scores + token * num_experts + experts, mask=is_expert, other=float("-inf"))
    exponentials = tl.exp(score - tl.max(score, 0))
    total = tl.sum(exponentials, 0)
    left = tl.where(is_expert, exponentials / total, -1.0)
    mass = left * 0.0
    for rank in range(top_k):
        largest = tl.max(left, 0)
        expert = tl.min(tl.where(left == largest, experts, num_experts), 0)
        tl.store(chosen + token * top_k + rank, tl.where(expert < num_experts, expert, rank))
        weight = tl.where(expert < num_experts, largest, float("nan"))
        tl.store(weights + token * top_k + rank, weight)
        mass += weight
        left = tl.where(experts == expert, -1.0, left)
    if RENORMALIZE:
        mass_of_all = tl.max(mass, 0)
        for rank in range(top_k):
            place = weights + token * top_k + rank
            tl.store(place, tl.load(place) / mass_of_all)


@triton.jit
def find_rows(ends, tile_ends, num_experts, EXPERTS: tl.constexpr, ROWS: tl.constexpr):
    """The expert of this program's tile, num_experts where there are no more; its rows, and where the expert's end."""
    tile, experts = tl.program_id(0), tl.arange(0, EXPERTS)
    is_expert = experts < num_experts
    all_tile_ends = tl.load(tile_ends + experts, mask=is_expert, other=2147483647)
    is_before = all_tile_ends <= tile
    expert = tl.sum(is_before.to(tl.int32), 0)
    first_tile = tl.max(tl.where(is_before, all_tile_ends, 0), 0)
    start = tl.max(tl.where(is_before, tl.load(ends + experts, mask=is_expert, other=0), 0), 0)
    end = tl.load(ends + expert, mask=expert < num_experts, other=0)
    return expert, start + (tile - first_tile) * ROWS + tl.arange(0, ROWS), end


@triton.jit
def experts_kernel(
    x,
    weight,
    scale,
    column_sums,
    order,
    ends,
    tile_ends,
    row_weights,
    out,
    num_experts,
    num_columns,
    depth,
    top_k,
    stride_x,
    ACT: tl.constexpr,
    IS_GATED: tl.constexpr,
    IS_UP: tl.constexpr,
    EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """A tile of one layer. The first takes rows of tokens and gives those of pairs, in their order; the second gives
    them back by their numbers, weighted."""
    expert, places, end = find_rows(ends, tile_ends, num_experts, EXPERTS, ROWS)
    if expert < num_experts:
        is_row = places < end
        pairs = tl.load(order + places, mask=is_row, other=0)
        columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        is_column = columns < num_columns
        x_rows = x + (pairs // top_k if IS_UP else places).to(tl.int64) * stride_x
        # Rows of the weight, by their numbers among those of all experts.
        first = expert.to(tl.int64) * (2 * num_columns if IS_GATED else num_columns)
        sums = multiply_expert(
            x_rows, weight, scale, column_sums, first + columns, depth, is_row, is_column, ROWS, COLUMNS, DEPTH
        )
        sums = activate(sums, ACT)
        if IS_GATED:
            first += num_columns
            sums *= multiply_expert(
                x_rows, weight, scale, column_sums, first + columns, depth, is_row, is_column, ROWS, COLUMNS, DEPTH
            )
        if not IS_UP:
            sums *= tl.load(row_weights + pairs, mask=is_row, other=0.0)[:, None]
        out_rows = out + (places if IS_UP else pairs).to(tl.int64) * num_columns
        mask = is_row[:, None] & is_column[None, :]
        tl.store(out_rows[:, None] + columns[None, :], sums.to(out.dtype.element_ty), mask=mask)


@triton.jit
def multiply_expert(
    x_rows,
    weight,
    scale,
    column_sums,
    weight_rows,
    depth,
    is_row,
    is_column,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    sums = multiply(x_rows, weight + weight_rows * depth, depth, is_row, is_column, ROWS, COLUMNS, DEPTH)
    if scale is not None:
        sums = scale_sums(sums, x_rows, column_sums, scale, depth, weight_rows, is_row, is_column)
    return sums


@triton.jit
def join_kernel(parts, out, width, top_k, BLOCK: tl.constexpr):
    """A token's row: the sum of what its experts gave."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for rank in range(top_k):
        total += tl.load(parts + (token * top_k + rank) * width + columns, mask=columns < width, other=0.0)
    tl.store(out + token * width + columns, total.to(out.dtype.element_ty), mask=columns < width)


def experts(
    x: Tensor,
    router: Tensor,
    up: Tensor,
    down: Tensor,
    top_k: int,
    act: str,
    is_gated: bool,
    renormalize: bool,
    up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
    up_sums: Tensor | None = None,
    down_sums: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    """`padless::experts` without scales, and `padless::experts_summed`."""
    if len(x) == 0:
        return
    x, num_rows, width = to_rows(x), len(x) * top_k, down.shape[2]
    routes = find_routes(x, router, top_k, renormalize, up.dtype)
    rows = x if up_scale is None else new_quantized_rows(x, None)
    hidden = x.new_empty(num_rows, width, dtype=x.dtype if up_scale is None else torch.bfloat16)
    launch_layer(rows, Weights(up, up_scale, up_sums), routes, top_k, act, is_gated, True, out=hidden)
    rows = hidden if down_scale is None else new_quantized_rows(hidden, None)
    parts = x.new_empty(num_rows, x.shape[1], dtype=torch.float32)
    launch_layer(rows, Weights(down, down_scale, down_sums), routes, top_k, "none", False, False, out=parts)
    join_kernel[(len(x), triton.cdiv(x.shape[1], BLOCK))](parts, out, x.shape[1], top_k, BLOCK=BLOCK)


def find_routes(x: Tensor, router: Tensor, top_k: int, renormalize: bool, dtype: torch.dtype) -> Routes:
    num_experts, num_pairs = len(router), len(x) * top_k
    scores = x.float() @ router.float().t()
    weights = x.new_empty(num_pairs, dtype=torch.float32)
    chosen = x.new_empty(num_pairs, dtype=torch.int32)
    route_kernel[(len(x),)](
        scores, weights, chosen, num_experts, top_k, RENORMALIZE=renormalize, BLOCK=round_power(num_experts)
    )
    in_order, order = chosen.sort(stable=True)
    every = torch.arange(num_experts, dtype=torch.int32, device=x.device)
    ends = torch.searchsorted(in_order, every, right=True, out_int32=True)
    tile = choose_tile(num_pairs, num_experts, dtype)
    counts = ends.diff(prepend=ends.new_zeros(1))
    tile_ends = ((counts + (tile.rows - 1)) // tile.rows).cumsum(0, dtype=torch.int32)
    return Routes(weights, order.int(), ends, tile_ends, tile)


def choose_tile(num_pairs: int, num_experts: int, dtype: torch.dtype) -> GemmTile:
    """The large one where experts have rows to fill it, but for fp32: a gate and its other half fill the registers."""
    return TILES[0] if num_pairs > TILES[1].rows * num_experts and dtype != torch.float32 else TILES[1]


def launch_layer(
    rows: Tensor, layer: Weights, routes: Routes, top_k: int, act: str, is_gated: bool, is_up: bool, *, out: Tensor
) -> None:
    num_pairs, num_columns = out.shape
    num_experts, depth = len(layer.values), layer.values.shape[2]
    tile = routes.tile
    # Each expert that has a pair may have one tile that is not full.
    num_tiles = triton.cdiv(num_pairs, tile.rows) + min(num_experts, num_pairs)
    experts_kernel[(num_tiles, triton.cdiv(num_columns, tile.columns))](
        *(rows, *layer, routes.order, routes.ends, routes.tile_ends, routes.weights, out),
        *(num_experts, num_columns, depth, top_k, rows.stride(0)),
        ACT=act,
        IS_GATED=is_gated,
        IS_UP=is_up,
        EXPERTS=round_power(num_experts),
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=find_depth(tile, layer.values.dtype),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
