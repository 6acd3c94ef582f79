"""Rows of uint8 with their scales (`runtime.ops.quantized_rows`) as kernels write them; and the kernel that makes them.

A row with a number that is none or infinite gets NaN for its scale, so that all that is computed from it shows it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.backends.cuda.activations import activate
from runtime.backends.cuda.rows import to_rows
from runtime.ops.quantized_rows import row_bytes

ROUND_TO_EVEN = tl.constexpr(12582912.0)
"""1.5 * 2 ** 23: fp32 numbers of this size are whole, so adding it and taking it away again rounds."""
MAX_BLOCK = 4096


@triton.jit
def round_to_even(x):
    return (x + ROUND_TO_EVEN) - ROUND_TO_EVEN


@triton.jit
def find_scale(low, high, spoilt):
    """Scales and zero points, fp32, of rows from `low` <= 0 to `high` >= 0; `spoilt` is NaN for those with a number
    that is none, else 0."""
    scale = tl.where(high > low, (high - low) * (1.0 / 255.0), 1.0) + spoilt
    zero = round_to_even(-low / scale)
    return scale, tl.where(zero == zero, zero, 0.0)


@triton.jit
def to_bytes(values, scale, zero):
    scaled = values * (1.0 / scale) + zero
    bounded = tl.minimum(tl.maximum(tl.where(scaled == scaled, scaled, 0.0), 0.0), 255.0)
    return round_to_even(bounded).to(tl.uint8)


@triton.jit
def write_tails(tails, scale, zero, mask):
    """The 64 bytes behind the values of each row; `tails`: pointers to them, [num_rows] as all others."""
    words = tl.arange(0, 16)[None, :]
    scale_bits = scale.to(tl.int32, bitcast=True)[:, None]
    content = tl.where(words == 0, scale_bits, tl.where(words == 1, zero.to(tl.int32)[:, None], 0))
    tl.store(tails.to(tl.pointer_type(tl.int32))[:, None] + words, content, mask=mask[:, None])


@triton.jit
def load_values(x, columns, width, inverse_smooth, ACT: tl.constexpr):
    """What is to be quantised of a row: its numbers, or with `ACT` its gate times its other half."""
    mask = columns < width
    values = tl.load(x + columns, mask=mask, other=0.0).to(tl.float32)
    if ACT is not None:
        values = activate(values, ACT) * tl.load(x + width + columns, mask=mask, other=0.0).to(tl.float32)
    if inverse_smooth is not None:
        values *= tl.load(inverse_smooth + columns, mask=mask, other=0.0)
    return values


@triton.jit
def quantize_rows_kernel(
    x,
    inverse_smooth,
    out,
    width,
    stride_x,
    stride_out,
    fixed_scale,
    fixed_zero,
    ACT: tl.constexpr,
    IS_FIXED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row. It is read twice where its range has to be found first: the second time it is in cache."""
    row = tl.program_id(0).to(tl.int64)
    x += row * stride_x
    out += row * stride_out
    low = tl.zeros([BLOCK], tl.float32)
    high = tl.zeros([BLOCK], tl.float32)
    spoilt = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        values = load_values(x, start + tl.arange(0, BLOCK), width, inverse_smooth, ACT)
        low, high, spoilt = tl.minimum(low, values), tl.maximum(high, values), spoilt + values * 0.0
    scale, zero = find_scale(tl.min(low), tl.max(high), tl.sum(spoilt))
    if IS_FIXED:
        scale, zero = fixed_scale + tl.sum(spoilt), fixed_zero.to(tl.float32)
    padded = (width + 63) // 64 * 64
    for start in range(0, padded, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        content = to_bytes(load_values(x, columns, width, inverse_smooth, ACT), scale, zero)
        tl.store(out + columns, tl.where(columns < width, content, 0), mask=columns < padded)
    one = tl.zeros([1], tl.int32)
    write_tails(out + padded + one, scale + one.to(tl.float32), zero + one.to(tl.float32), one == 0)


def write_quantized_rows(
    x: Tensor,
    width: int,
    inverse_smooth: Tensor | None,
    scale: float,
    zero: int,
    *,
    act: str | None = None,
    out: Tensor,
) -> None:
    """Quantise the rows of x [num_rows, width], or with `act` the gates of [num_rows, 2 * width]."""
    block = min(MAX_BLOCK, max(64, triton.next_power_of_2(width)))
    quantize_rows_kernel[(len(x),)](
        *(x, inverse_smooth, out, width, x.stride(0), out.stride(0), scale, zero),
        ACT=act,
        IS_FIXED=scale > 0,
        BLOCK=block,
        num_warps=max(1, block // 512),
    )


def new_quantized_rows(x: Tensor, inverse_smooth: Tensor | None, scale: float = 0.0, zero: int = 0) -> Tensor:
    x = to_rows(x)
    rows = torch.empty(len(x), row_bytes(x.shape[1]), dtype=torch.uint8, device=x.device)
    write_quantized_rows(x, x.shape[1], inverse_smooth, scale, zero, out=rows)
    return rows
