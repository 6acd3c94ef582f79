"""Linear layers with an activation or a sum behind them: one Triton kernel, or torch's GEMM where that has more of it.

cuBLASLt multiplies faster, but all that follows then reads the result again and writes it again. That weighs most where
a result has much for its depth: BERT's 768 take less time to multiply than their activations to read and to write.
"""

import torch
from torch import Tensor

from runtime.backends.cuda.gemm import Weight, launch_linear
from runtime.backends.plain.linear_act import linear_act as by_torch

MAX_DEPTH = 2048
"""Of layers whose activation or sum is worth a kernel of ours."""
MIN_ROWS = 64
"""Below that a weight is read about once whatever is done, and torch splits depths among multiprocessors."""
ALIGNMENT = 16
HALF_TYPES = (torch.bfloat16, torch.float16)


def linear_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    act: str = "none",
    residual: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    if x.dim() != 2:
        x, out = x.reshape(-1, x.shape[-1]), out.view(-1, out.shape[-1])
    if (act != "none" or residual is not None) and is_for_kernel(x, weight):
        launch_linear(x, Weight(weight), bias, act, residual, out=out)
    else:
        by_torch(x, weight, bias, act, residual, out=out)


def is_for_kernel(x: Tensor, weight: Tensor) -> bool:
    """Of what it can multiply, what it is worth. Rows have to begin where devices load 16 numbers at once."""
    is_wide = weight.shape[1] <= MAX_DEPTH and len(x) >= MIN_ROWS
    is_aligned = not any(number % ALIGNMENT for number in (weight.shape[1], x.stride(0), weight.stride(0)))
    return is_wide and is_aligned and weight.stride(1) == 1 and x.dtype == weight.dtype and x.dtype in HALF_TYPES
