"""LayerNorm and RMSNorm of a tensor, or of the sum of two: each row is read once, and stays in registers."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from runtime.backends.cuda.quantized_rows import find_scale, to_bytes, write_tails
from runtime.backends.cuda.rows import to_rows
from runtime.ops.add_norm import add_norm as reference

MAX_WIDTH = 16384
"""Of rows that registers hold; torch normalises wider ones."""
TILE = 2048
"""Numbers of a program at least: several rows where they are short."""


@triton.jit
def normalize(values, weight, bias, columns, width, eps, IS_RMS: tl.constexpr):
    """Rows `values` fp32 [ROWS, BLOCK], 0 from column `width` on."""
    inside = (columns < width)[None, :]
    if not IS_RMS:
        values = tl.where(inside, values - (tl.sum(values, 1) / width)[:, None], 0.0)
    values *= tl.rsqrt(tl.sum(values * values, 1) / width + eps)[:, None]
    if weight is not None:
        values *= tl.load(weight + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    if bias is not None:
        values += tl.load(bias + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    return values


@triton.jit(do_not_specialize=["num_rows"])
def add_norm_kernel(
    x,
    residual,
    weight,
    bias,
    inverse_smooth,
    out,
    num_rows,
    num_heads,
    width,
    stride_token,
    stride_head,
    stride_residual,
    stride_out,
    eps,
    fixed_scale,
    fixed_zero,
    IS_RMS: tl.constexpr,
    IS_QUANTIZED: tl.constexpr,
    IS_FIXED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS rows: heads of tokens, one behind the other within a token."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    is_row = rows < num_rows
    mask = is_row[:, None] & (columns < width)[None, :]
    starts = (rows // num_heads).to(tl.int64) * stride_token + (rows % num_heads) * stride_head
    rows = rows.to(tl.int64)
    values = tl.load(x + starts[:, None] + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        added = residual + (rows * stride_residual)[:, None] + columns[None, :]
        values += tl.load(added, mask=mask, other=0.0).to(tl.float32)
    values = normalize(values, weight, bias, columns, width, eps, IS_RMS)
    places = out + (rows * stride_out)[:, None]
    if not IS_QUANTIZED:
        tl.store(places + columns[None, :], values, mask=mask)
    else:
        if inverse_smooth is not None:
            values *= tl.load(inverse_smooth + columns, mask=columns < width, other=0.0)[None, :]
        spoilt = tl.sum(values * 0.0, 1)
        scale, zero = find_scale(tl.minimum(tl.min(values, 1), 0.0), tl.maximum(tl.max(values, 1), 0.0), spoilt)
        if IS_FIXED:
            scale, zero = fixed_scale + spoilt, tl.zeros_like(zero) + fixed_zero
        padded = (width + 63) // 64 * 64
        content = tl.where(mask, to_bytes(values, scale[:, None], zero[:, None]), 0)
        tl.store(places + columns[None, :], content, mask=is_row[:, None] & (columns < padded)[None, :])
        write_tails(out + rows * stride_out + padded, scale, zero, is_row)


def add_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    is_rms: bool = False,
    dtype: torch.dtype | None = None,
    out_inverse_smooth: Tensor | None = None,
    out_scale: float = 0.0,
    out_zero: int = 0,
    *,
    out: Tensor,
) -> None:
    quantization = (out_inverse_smooth, out_scale, out_zero)
    if x.shape[-1] > MAX_WIDTH:
        out.copy_(reference(x, residual, weight, bias, eps, is_rms, dtype, *quantization))
    else:
        launch_norm(x, residual, weight, bias, eps, is_rms, *quantization, out=out)


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = False,
    *,
    out: Tensor,
) -> None:
    width = torch.Size(normalized_shape).numel()
    if width > MAX_WIDTH:
        out.copy_(functional.layer_norm(x, normalized_shape, weight, bias, eps))
    else:
        launch_norm(x.reshape(-1, width), None, weight, bias, eps, out=out.view(-1, width))


def launch_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    is_rms: bool = False,
    out_inverse_smooth: Tensor | None = None,
    out_scale: float = 0.0,
    out_zero: int = 0,
    *,
    out: Tensor,
) -> None:
    """`out`: numbers, or quantized rows."""
    # Heads of tokens, one behind the other within a token, however far the tokens are apart.
    x = x if x.dim() == 3 and x.stride(2) == 1 else to_rows(x)
    residual = None if residual is None else to_rows(residual)
    num_heads, width = x.shape[1] if x.dim() == 3 else 1, x.shape[-1]
    num_rows, is_quantized = x.numel() // width, out.dtype == torch.uint8
    rows, block, num_warps = choose_tile(width, is_quantized)
    add_norm_kernel[(triton.cdiv(num_rows, rows),)](
        *(x, residual, weight, bias, out_inverse_smooth, out, num_rows, num_heads, width),
        *(x.stride(0), x.stride(-2), 0 if residual is None else residual.stride(0), out.stride(-2)),
        *(eps, out_scale, out_zero),
        IS_RMS=is_rms,
        IS_QUANTIZED=is_quantized,
        IS_FIXED=out_scale > 0,
        ROWS=rows,
        BLOCK=block,
        num_warps=num_warps,
    )


def choose_tile(width: int, is_quantized: bool) -> tuple[int, int, int]:
    """Rows and columns of a program, and its warps: 16 to 32 numbers for each thread."""
    block = max(64 if is_quantized else 16, triton.next_power_of_2(width))
    rows = max(1, TILE // block)
    return rows, block, min(32, max(4, rows * block // 1024))
