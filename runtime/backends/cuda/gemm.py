"""Products of rows and weights, with what follows them: the kernel of all linear layers, and its innermost loop."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.backends.cuda.activations import activate
from runtime.backends.cuda.quantized_rows import to_bytes, write_tails
from runtime.backends.cuda.rows import to_rows
from runtime.backends.cuda.tiles import Tile


@dataclass(frozen=True, slots=True)
class GemmTile(Tile):
    """`depth_bytes`: what it multiplies at a time of each row of x and of the weight."""

    depth_bytes: int = 128


TILES = (
    GemmTile(128, 128, num_warps=8, num_stages=3),
    GemmTile(64, 128, num_warps=4, num_stages=3),
    GemmTile(64, 64, num_warps=4, num_stages=4),
    GemmTile(32, 64, num_warps=4, num_stages=4),
    GemmTile(16, 64, num_warps=4, num_stages=4),
)
"""The largest first: it loads least for what it multiplies."""
MANY_PROGRAMS = 128
"""About as many as large devices have multiprocessors."""
BAND = 8
"""Tiles in a column before the next one begins: neighbours in time share rows and weights in the device's cache."""


def choose_tile(num_rows: int, num_columns: int) -> GemmTile:
    """The largest that is more than half full and leaves no multiprocessor idle; else the smallest."""
    for tile in TILES:
        num_programs = triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_columns, tile.columns)
        if num_programs >= MANY_PROGRAMS and num_rows > tile.rows // 2:
            return tile
    return TILES[-1]


@triton.jit
def multiply(
    x_rows,
    weight_rows,
    depth,
    is_row,
    is_column,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """x times weight, transposed: [ROWS, COLUMNS], in fp32, or in int32 where x is uint8, which then counts from 128.

    `x_rows` [ROWS], `weight_rows` [COLUMNS]: pointers to their beginnings.
    """
    ks = tl.arange(0, DEPTH)
    is_int8: tl.constexpr = x_rows.dtype.element_ty == tl.uint8
    sums = tl.zeros([ROWS, COLUMNS], tl.int32 if is_int8 else tl.float32)
    for start in range(0, depth, DEPTH):
        inside = start + ks < depth
        x = tl.load(x_rows[:, None] + (start + ks)[None, :], mask=is_row[:, None] & inside[None, :], other=0.0)
        places = weight_rows[None, :] + (start + ks)[:, None]
        weight = tl.load(places, mask=inside[:, None] & is_column[None, :], other=0.0)
        if is_int8:
            sums = tl.dot((x ^ 128).to(tl.int8, bitcast=True), weight, sums, out_dtype=tl.int32)
        else:
            sums = tl.dot(x, weight, sums, input_precision="tf32x3")
    return sums


@triton.jit
def scale_sums(sums, x_rows, column_sums, scale, depth, columns, is_row, is_column):
    """The numbers that int32 sums of quantized rows and an int8 weight stand for."""
    tails = (x_rows + (depth + 63) // 64 * 64).to(tl.pointer_type(tl.int32))
    row_scale = tl.load(tails, mask=is_row, other=0).to(tl.float32, bitcast=True)
    shift = 128 - tl.load(tails + 1, mask=is_row, other=0)
    sums += shift[:, None] * tl.load(column_sums + columns, mask=is_column, other=0)[None, :]
    return sums.to(tl.float32) * (row_scale[:, None] * tl.load(scale + columns, mask=is_column, other=0.0)[None, :])


@triton.jit
def place_tile(num_rows, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BAND: tl.constexpr):
    """First row and first column of this program's tile."""
    tiles_down, tiles_across = tl.cdiv(num_rows, ROWS), tl.cdiv(num_columns, COLUMNS)
    first = tl.program_id(0) // (BAND * tiles_across) * BAND
    height = tl.minimum(tiles_down - first, BAND)
    place = tl.program_id(0) % (BAND * tiles_across)
    return (first + place % height) * ROWS, place // height * COLUMNS


@triton.jit(do_not_specialize=["num_rows"])
def linear_kernel(
    x,
    weight,
    column_sums,
    scale,
    bias,
    residual,
    out_inverse_smooth,
    out,
    num_rows,
    num_columns,
    depth,
    stride_x,
    stride_weight,
    stride_residual,
    stride_out,
    out_scale,
    out_zero,
    ACT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    BAND: tl.constexpr,
):
    first_row, first_column = place_tile(num_rows, num_columns, ROWS, COLUMNS, BAND)
    rows, columns = (first_row + tl.arange(0, ROWS)).to(tl.int64), first_column + tl.arange(0, COLUMNS)
    is_row, is_column = rows < num_rows, columns < num_columns
    x_rows, weight_rows = x + rows * stride_x, weight + columns.to(tl.int64) * stride_weight
    sums = multiply(x_rows, weight_rows, depth, is_row, is_column, ROWS, COLUMNS, DEPTH)
    if scale is not None:
        sums = scale_sums(sums, x_rows, column_sums, scale, depth, columns, is_row, is_column)
    if bias is not None:
        sums += tl.load(bias + columns, mask=is_column, other=0.0).to(tl.float32)[None, :]
    sums = activate(sums, ACT)
    mask = is_row[:, None] & is_column[None, :]
    if residual is not None:
        places = residual + (rows * stride_residual)[:, None] + columns[None, :]
        sums += tl.load(places, mask=mask, other=0.0).to(tl.float32)
    out_rows = out + rows * stride_out
    if out.dtype.element_ty == tl.uint8:
        write_fixed(out_rows, sums, out_inverse_smooth, columns, num_columns, is_row, out_scale, out_zero)
    else:
        tl.store(out_rows[:, None] + columns[None, :], sums.to(out.dtype.element_ty), mask=mask)


@triton.jit
def write_fixed(out_rows, values, inverse_smooth, columns, width, is_row, scale, zero):
    """Values [rows, columns] of quantized rows whose scale is known; the tails by those who write the first columns."""
    is_column = columns < width
    if inverse_smooth is not None:
        values *= tl.load(inverse_smooth + columns, mask=is_column, other=0.0)[None, :]
    padded = (width + 63) // 64 * 64
    content = tl.where(is_column[None, :], to_bytes(values, scale, zero), 0)
    tl.store(out_rows[:, None] + columns[None, :], content, mask=is_row[:, None] & (columns < padded)[None, :])
    nothing = tl.zeros_like(is_row.to(tl.int32))
    is_first = is_row & (tl.min(columns) == 0)
    write_tails(out_rows + padded, nothing.to(tl.float32) + scale, nothing + zero, is_first)


def launch_linear(
    x: Tensor,
    weight: Tensor,
    column_sums: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    act: str,
    residual: Tensor | None,
    out_inverse_smooth: Tensor | None = None,
    out_scale: float = 0.0,
    out_zero: int = 0,
    *,
    out: Tensor,
) -> None:
    """x [num_rows, depth] or its quantized rows; weight [num_columns, depth], int8 with `scale` and `column_sums`.

    `out`: numbers, or quantized rows by `out_scale`.
    """
    x, residual = to_rows(x), None if residual is None else to_rows(residual)
    num_rows, (num_columns, depth) = len(x), weight.shape
    tile = choose_tile(num_rows, num_columns)
    linear_kernel[(triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_columns, tile.columns),)](
        *(x, weight, column_sums, scale, bias, residual, out_inverse_smooth, out, num_rows, num_columns, depth),
        *(x.stride(0), weight.stride(0), 0 if residual is None else residual.stride(0), out.stride(0)),
        *(out_scale, out_zero),
        ACT=act,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=find_depth(tile, weight.dtype),
        BAND=BAND,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def find_depth(tile: GemmTile, dtype: torch.dtype) -> int:
    """In numbers of that type."""
    return tile.depth_bytes // dtype.itemsize
