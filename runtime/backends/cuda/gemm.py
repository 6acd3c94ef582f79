"""The kernel of all linear layers: products of rows and weights, with what follows them.

Where a few rows are multiplied by a weight that has few columns, its depth is cut into slices, which are programs of
their own; a second kernel adds their sums. Into which slices depends on the weight's shape alone, and they are added in
their order, in whichever kernel: what a row's result is does not depend on how many rows there are, as far as the
matrix instructions for few rows add as those for many do. Of Hopper's for 64 rows and more only a device can tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.backends.cuda.epilogue import finish
from runtime.backends.cuda.multiply import multiply_slices
from runtime.backends.cuda.rows import to_rows
from runtime.backends.cuda.tiles import Tile
from runtime.ops.linear_weight_only import find_group


@dataclass(frozen=True, slots=True)
class GemmTile(Tile):
    """`depth_bytes`: what it multiplies at a time of each row of x."""

    depth_bytes: int = 128


TILES = (
    GemmTile(128, 128, num_warps=8, num_stages=3),
    GemmTile(64, 128, num_warps=4, num_stages=3),
    GemmTile(64, 64, num_warps=4, num_stages=4),
    GemmTile(32, 64, num_warps=4, num_stages=4),
    GemmTile(16, 64, num_warps=4, num_stages=4),
)
"""The largest first: it loads least for what it multiplies."""
SLICED_TILES = (GemmTile(128, 64, num_warps=8, num_stages=3), *TILES[2:])
"""Where a program adds up slices: it has two tiles of sums in registers."""
GROUPED_TILES = (GemmTile(128, 32, num_warps=8, num_stages=3), GemmTile(64, 32, num_warps=4, num_stages=3), *TILES[3:])
"""Where weights come in groups: it has these as 16 bits there, too."""
MANY_PROGRAMS = 128
"""About as many as large devices have multiprocessors."""
BAND = 8
"""Tiles in a column before the next one begins: neighbours in time share rows and weights in the device's cache."""
SLICE_STEP = 128
"""Slices are multiples of it, and it is one of what tiles multiply at a time and of every group of inputs."""


class Weight(NamedTuple):
    """`values` [num_columns, depth] and what they stand for. With `column_sums` they are int8 for quantized rows; with
    `zero` 4 bits in groups."""

    values: Tensor
    scale: Tensor | None = None
    column_sums: Tensor | None = None
    zero: Tensor | None = None

    @property
    def group(self) -> int:
        """Inputs of one; 0 where there are none."""
        return 0 if self.zero is None else find_group(self.values, self.zero)


class Slices(NamedTuple):
    """`num_slices` of a depth, of `depth` numbers each; the last one may have fewer."""

    num_slices: int
    depth: int


def choose_tile(num_rows: int, num_columns: int, tiles: Sequence[GemmTile] = TILES) -> GemmTile:
    """The largest that is more than half full and leaves no multiprocessor idle; else the smallest."""
    for tile in tiles:
        if count_tiles(tile, num_rows, num_columns) >= MANY_PROGRAMS and num_rows > tile.rows // 2:
            return tile
    return tiles[-1]


def count_tiles(tile: GemmTile, num_rows: int, num_columns: int) -> int:
    return int(triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_columns, tile.columns))


def cut_depth(num_columns: int, depth: int, least: int) -> Slices:
    """As many slices of at least so many numbers, but the last, as keep a device busy with one row of tiles."""
    wanted = triton.cdiv(MANY_PROGRAMS, triton.cdiv(num_columns, TILES[-1].columns))
    slice_depth = triton.cdiv(depth, max(1, min(wanted, depth // least)))
    slice_depth = triton.cdiv(slice_depth, SLICE_STEP) * SLICE_STEP
    return Slices(triton.cdiv(depth, slice_depth), slice_depth)


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
    zero,
    row_scale,
    bias,
    residual,
    out_inverse_smooth,
    out,
    parts,
    num_rows,
    num_columns,
    depth,
    slice_depth,
    stride_x,
    stride_weight,
    stride_residual,
    stride_out,
    out_scale,
    out_zero,
    ACT: tl.constexpr,
    SLICES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    BAND: tl.constexpr,
):
    """A tile of the result from all slices; or with `parts` the sums of one, [slices, num_rows, num_columns]."""
    first_row, first_column = place_tile(num_rows, num_columns, ROWS, COLUMNS, BAND)
    rows, columns = (first_row + tl.arange(0, ROWS)).to(tl.int64), first_column + tl.arange(0, COLUMNS)
    is_row, is_column = rows < num_rows, columns < num_columns
    x_rows, weight_rows = x + rows * stride_x, weight + columns.to(tl.int64) * stride_weight
    start = tl.program_id(1) * slice_depth
    sums = multiply_slices(
        x_rows,
        weight_rows,
        scale,
        zero,
        start,
        slice_depth,
        depth,
        columns,
        num_columns,
        is_row,
        is_column,
        SLICES,
        ROWS,
        COLUMNS,
        DEPTH,
        GROUP,
    )
    if parts is not None:
        part = parts + tl.program_id(1).to(tl.int64) * num_rows * num_columns
        mask = is_row[:, None] & is_column[None, :]
        tl.store(part + (rows * num_columns)[:, None] + columns[None, :], sums, mask=mask)
    else:
        finish(
            sums,
            x_rows,
            row_scale,
            column_sums,
            None if GROUP else scale,
            bias,
            residual,
            out_inverse_smooth,
            out,
            rows,
            columns,
            num_rows,
            num_columns,
            depth,
            stride_residual,
            stride_out,
            out_scale,
            out_zero,
            ACT,
        )


@triton.jit(do_not_specialize=["num_rows"])
def join_kernel(
    parts,
    num_slices,
    x,
    row_scale,
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
    stride_residual,
    stride_out,
    out_scale,
    out_zero,
    ACT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A tile of the result from the sums of all slices, added in their order."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    places = parts + (rows * num_columns)[:, None] + columns[None, :]
    sums = tl.load(places, mask=mask, other=0)
    for _ in range(1, num_slices):
        places += num_rows.to(tl.int64) * num_columns
        sums += tl.load(places, mask=mask, other=0)
    finish(
        sums,
        x + rows * stride_x,
        row_scale,
        column_sums,
        scale,
        bias,
        residual,
        out_inverse_smooth,
        out,
        rows,
        columns,
        num_rows,
        num_columns,
        depth,
        stride_residual,
        stride_out,
        out_scale,
        out_zero,
        ACT,
    )


def launch_linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    act: str,
    residual: Tensor | None,
    out_inverse_smooth: Tensor | None = None,
    out_scale: float = 0.0,
    out_zero: int = 0,
    *,
    row_scale: Tensor | None = None,
    least_slice: int | None = None,
    out: Tensor,
) -> None:
    """x [num_rows, depth] or its quantized rows. `row_scale`: of e4m3. `least_slice`: numbers of a slice at least; None
    leaves the depth whole. `out`: numbers, or quantized rows by `out_scale`.
    """
    x, residual = to_rows(x), None if residual is None else to_rows(residual)
    num_rows, num_columns = len(x), len(weight.values)
    # Weights may have columns of zeros behind those of x, and quantized rows have more than the weight.
    depth = min(x.shape[1], weight.values.shape[1] * (2 if weight.group else 1))
    is_exact = x.dtype == torch.uint8
    slices = Slices(1, depth) if least_slice is None else cut_depth(num_columns, depth, least_slice)
    tile = choose_tile(num_rows, num_columns, list_tiles(weight, slices, is_exact))
    num_tiles = count_tiles(tile, num_rows, num_columns)
    is_split = slices.num_slices > 1 and num_tiles < MANY_PROGRAMS
    if is_exact and not is_split:
        slices = Slices(1, depth)
    dtype = torch.int32 if is_exact else torch.float32
    parts = x.new_empty(slices.num_slices, num_rows, num_columns, dtype=dtype) if is_split else None
    stride_residual = 0 if residual is None else residual.stride(0)
    after = (bias, residual, out_inverse_smooth, out)
    linear_kernel[(num_tiles, slices.num_slices if is_split else 1)](
        *(x, weight.values, weight.column_sums, weight.scale, weight.zero, row_scale, *after, parts),
        *(num_rows, num_columns, depth, slices.depth),
        *(x.stride(0), weight.values.stride(0), stride_residual, out.stride(0), out_scale, out_zero),
        ACT=act,
        SLICES=1 if is_split else slices.num_slices,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=find_depth(tile, x.dtype),
        GROUP=weight.group,
        BAND=BAND,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    if parts is None:
        return
    tile = TILES[-1]
    join_kernel[(triton.cdiv(num_rows, tile.rows), triton.cdiv(num_columns, tile.columns))](
        *(parts, slices.num_slices, x, row_scale, weight.column_sums, None if weight.group else weight.scale, *after),
        *(num_rows, num_columns, depth, x.stride(0), stride_residual, out.stride(0), out_scale, out_zero),
        ACT=act,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        num_warps=tile.num_warps,
    )


def list_tiles(weight: Weight, slices: Slices, is_exact: bool) -> Sequence[GemmTile]:
    """`is_exact`: sums are whole numbers, which are the same however they are added, so that no program adds slices."""
    if weight.group:
        return GROUPED_TILES
    return SLICED_TILES if slices.num_slices > 1 and not is_exact else TILES


def find_depth(tile: GemmTile, dtype: torch.dtype) -> int:
    """In numbers of that type."""
    return tile.depth_bytes // dtype.itemsize
