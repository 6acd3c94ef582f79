"""fp8 linear layers: a kernel that rounds rows to e4m3, and that of all linear layers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.backends.cuda.gemm import Weight, launch_linear
from runtime.backends.cuda.rows import to_rows
from runtime.ops.linear_fp8 import E4M3, LEAST_SCALE, MAX_E4M3

LEAST_SLICE = 2048
"""Numbers; of a depth that is cut. Encoders' layers, whose batches are large, are mostly not so deep: each slice has to
fill its loop anew."""
MAX_BLOCK = 4096


@triton.jit
def round_rows_kernel(
    x, out, scales, width, padded, stride_x, MOST: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr
):
    """One row, zeros from `width` to `padded`. It is read twice: the second time it is in cache."""
    row = tl.program_id(0).to(tl.int64)
    x += row * stride_x
    largest = tl.zeros([BLOCK], tl.float32)
    spoilt = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(x + columns, mask=columns < width, other=0.0).to(tl.float32)
        largest, spoilt = tl.maximum(largest, tl.abs(values)), spoilt + values * 0.0
    bound = tl.max(largest)
    scale = tl.maximum(tl.where(bound == 0.0, 1.0, bound / MOST), LEAST)
    tl.store(scales + row, scale + tl.sum(spoilt))
    for start in range(0, padded, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(x + columns, mask=columns < width, other=0.0).to(tl.float32) * (1.0 / scale)
        values = tl.minimum(tl.maximum(values, -MOST), MOST)
        tl.store(out + row * padded + columns, values.to(out.dtype.element_ty), mask=columns < padded)


def round_rows(x: Tensor, padded: int) -> tuple[Tensor, Tensor]:
    """e4m3 [num_rows, padded], and scales fp32 [num_rows]."""
    x = to_rows(x)
    rows = torch.empty(len(x), padded, dtype=E4M3, device=x.device)
    scales = torch.empty(len(x), dtype=torch.float32, device=x.device)
    block = min(MAX_BLOCK, max(64, triton.next_power_of_2(padded)))
    round_rows_kernel[(len(x),)](
        *(x, rows, scales, x.shape[1], padded, x.stride(0)),
        MOST=MAX_E4M3,
        LEAST=LEAST_SCALE,
        BLOCK=block,
        num_warps=max(1, block // 512),
    )
    return rows, scales


def linear_fp8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    act: str = "none",
    residual: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    rows, row_scale = round_rows(x, weight.shape[1])
    launch_linear(
        rows, Weight(weight, scale), bias, act, residual, row_scale=row_scale, least_slice=LEAST_SLICE, out=out
    )
