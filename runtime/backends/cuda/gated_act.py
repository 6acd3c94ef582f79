"""The gate of a feed-forward block."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.backends.cuda.activations import activate
from runtime.backends.cuda.quantized_rows import write_quantized_rows
from runtime.backends.cuda.rows import to_rows

BLOCK = 1024


@triton.jit
def gated_act_kernel(x, out, width, stride_x, ACT: tl.constexpr, BLOCK: tl.constexpr):
    """A block of one row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    gate = tl.load(x + row * stride_x + columns, mask=mask).to(tl.float32)
    other = tl.load(x + row * stride_x + width + columns, mask=mask).to(tl.float32)
    tl.store(out + row * width + columns, activate(gate, ACT) * other, mask=mask)


def gated_act(
    x: Tensor,
    act: str,
    dtype: torch.dtype | None = None,
    out_inverse_smooth: Tensor | None = None,
    out_scale: float = 0.0,
    out_zero: int = 0,
    *,
    out: Tensor,
) -> None:
    x, width = to_rows(x), x.shape[1] // 2
    if dtype == torch.uint8:
        write_quantized_rows(x, width, out_inverse_smooth, out_scale, out_zero, act=act, out=out)
        return
    grid = (len(x), triton.cdiv(width, BLOCK))
    gated_act_kernel[grid](x, out, width, x.stride(0), ACT=act, BLOCK=BLOCK)
