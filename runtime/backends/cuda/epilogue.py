"""What follows a linear layer's sums, while they are in registers: scales, bias, activation, residual, rounding."""

import triton
import triton.language as tl

from runtime.backends.cuda.activations import activate
from runtime.backends.cuda.quantized_rows import to_bytes, write_tails


@triton.jit
def finish(
    sums,
    x_rows,
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
    ACT: tl.constexpr,
):
    """A tile of the result from all of its sums [ROWS, COLUMNS]. `x_rows` [ROWS]: pointers to quantized rows, whose
    scales are behind them; `row_scale`: those of rows that have them elsewhere."""
    is_row, is_column = rows < num_rows, columns < num_columns
    mask = is_row[:, None] & is_column[None, :]
    if column_sums is not None:
        sums = scale_sums(sums, x_rows, column_sums, scale, depth, columns, is_row, is_column)
    elif scale is not None:
        sums *= tl.load(scale + columns, mask=is_column, other=0.0)[None, :]
    if row_scale is not None:
        sums *= tl.load(row_scale + rows, mask=is_row, other=0.0)[:, None]
    if bias is not None:
        sums += tl.load(bias + columns, mask=is_column, other=0.0).to(tl.float32)[None, :]
    sums = activate(sums, ACT)
    if residual is not None:
        places = residual + (rows * stride_residual)[:, None] + columns[None, :]
        sums += tl.load(places, mask=mask, other=0.0).to(tl.float32)
    out_rows = out + rows * stride_out
    if out.dtype.element_ty == tl.uint8:
        write_fixed(out_rows, sums, out_inverse_smooth, columns, num_columns, is_row, out_scale, out_zero)
    else:
        tl.store(out_rows[:, None] + columns[None, :], sums.to(out.dtype.element_ty), mask=mask)


@triton.jit
def scale_sums(sums, x_rows, column_sums, scale, depth, columns, is_row, is_column):
    """The numbers that int32 sums of quantized rows and an int8 weight stand for."""
    tails = (x_rows + (depth + 63) // 64 * 64).to(tl.pointer_type(tl.int32))
    row_scale = tl.load(tails, mask=is_row, other=0).to(tl.float32, bitcast=True)
    shift = 128 - tl.load(tails + 1, mask=is_row, other=0)
    sums += shift[:, None] * tl.load(column_sums + columns, mask=is_column, other=0)[None, :]
    return sums.to(tl.float32) * (row_scale[:, None] * tl.load(scale + columns, mask=is_column, other=0.0)[None, :])


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
