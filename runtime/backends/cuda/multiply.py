"""Products of rows and weights, transposed: the innermost loops of all that multiplies by a weight.

`x_rows` [ROWS] and `weight_rows` [COLUMNS] are pointers to their beginnings; what is returned is [ROWS, COLUMNS], in
fp32, or in int32 where x is uint8, which then counts from 128.
"""

import triton
import triton.language as tl


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
    """A weight of x's type; int8 where x is uint8, or of 16 bits, which hold such numbers exactly."""
    ks = tl.arange(0, DEPTH)
    is_int8: tl.constexpr = x_rows.dtype.element_ty == tl.uint8
    is_fp8: tl.constexpr = x_rows.dtype.element_ty == tl.float8e4nv
    sums = tl.zeros([ROWS, COLUMNS], tl.int32 if is_int8 else tl.float32)
    for start in range(0, depth, DEPTH):
        inside = start + ks < depth
        x = tl.load(x_rows[:, None] + (start + ks)[None, :], mask=is_row[:, None] & inside[None, :], other=0.0)
        places = weight_rows[None, :] + (start + ks)[:, None]
        weight = tl.load(places, mask=inside[:, None] & is_column[None, :], other=0.0)
        if is_int8:
            sums = tl.dot((x ^ 128).to(tl.int8, bitcast=True), weight, sums, out_dtype=tl.int32)
        elif is_fp8:
            # Hopper's matrix instructions keep 14 bits of a sum of e4m3: no longer than for one piece.
            sums = tl.dot(x, weight, sums, max_num_imprecise_acc=DEPTH)
        else:
            sums = tl.dot(x, weight.to(x.dtype), sums, input_precision="tf32x3")
    return sums


@triton.jit
def multiply_groups(
    x_rows,
    weight_rows,
    scale,
    zero,
    first,
    end,
    depth,
    columns,
    num_columns,
    is_row,
    is_column,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """4-bit values of the groups from `first` to `end`, of inputs that end at `depth` (`padless::linear_weight_only`).
    A value less its zero point is exact in 16 bits, and a group's sums are scaled in fp32."""
    HALF: tl.constexpr = GROUP // 2
    ks = tl.arange(0, HALF)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for group in range(first, end):
        start = group * GROUP
        packed = tl.load(weight_rows[None, :] + (group * HALF + ks)[:, None], mask=is_column[None, :], other=0)
        of_group = group * num_columns + columns
        zeros = tl.load(zero + of_group, mask=is_column, other=0).to(tl.int8)[None, :]
        low_inside, high_inside = start + ks < depth, start + HALF + ks < depth
        places = x_rows[:, None] + (start + ks)[None, :]
        low = tl.load(places, mask=is_row[:, None] & low_inside[None, :], other=0.0)
        high = tl.load(places + HALF, mask=is_row[:, None] & high_inside[None, :], other=0.0)
        part = tl.dot(low, ((packed & 15).to(tl.int8) - zeros).to(low.dtype), input_precision="tf32x3")
        part = tl.dot(high, ((packed >> 4).to(tl.int8) - zeros).to(high.dtype), part, input_precision="tf32x3")
        sums += part * tl.load(scale + of_group, mask=is_column, other=0.0).to(tl.float32)[None, :]
    return sums


@triton.jit
def multiply_slice(
    x_rows,
    weight_rows,
    scale,
    zero,
    start,
    end,
    columns,
    num_columns,
    is_row,
    is_column,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The sums over inputs from `start` to `end`, of a weight in groups or without."""
    if GROUP:
        sums = multiply_groups(
            x_rows,
            weight_rows,
            scale,
            zero,
            start // GROUP,
            tl.cdiv(end, GROUP),
            end,
            columns,
            num_columns,
            is_row,
            is_column,
            ROWS,
            COLUMNS,
            GROUP,
        )
    else:
        sums = multiply(x_rows + start, weight_rows + start, end - start, is_row, is_column, ROWS, COLUMNS, DEPTH)
    return sums


@triton.jit
def multiply_slices(
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
    SLICES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The sums of so many slices of the depth from `start` on, added in their order."""
    end = tl.minimum(start + slice_depth, depth)
    sums = multiply_slice(
        x_rows,
        weight_rows,
        scale,
        zero,
        start,
        end,
        columns,
        num_columns,
        is_row,
        is_column,
        ROWS,
        COLUMNS,
        DEPTH,
        GROUP,
    )
    if SLICES > 1:
        for _ in range(1, SLICES):
            start += slice_depth
            end = tl.minimum(start + slice_depth, depth)
            sums += multiply_slice(
                x_rows,
                weight_rows,
                scale,
                zero,
                start,
                end,
                columns,
                num_columns,
                is_row,
                is_column,
                ROWS,
                COLUMNS,
                DEPTH,
                GROUP,
            )
    return sums
