"""Linear layers through torch's GEMM, straight into the result's memory, with the activation applied in place."""

from collections.abc import Callable

import torch
from torch import Tensor

from runtime.backends.plain.row_blocks import split_blocks

MIXED_BLOCK_ROWS = 512
"""Rows converted at a time on a CPU where x and weight differ in type."""

# In place, or with the result's own memory as `out`: nothing is allocated.
ACTIVATE: dict[str, Callable[[Tensor], object]] = {
    "none": lambda x: None,
    "gelu": lambda x: torch.ops.aten.gelu.out(x, out=x),
    "gelu_tanh": lambda x: torch.ops.aten.gelu.out(x, approximate="tanh", out=x),
    "relu": torch.relu_,
    "silu": lambda x: torch.ops.aten.silu.out(x, out=x),
    "tanh": torch.tanh_,
}


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
    bias = None if bias is None else bias.to(weight.dtype)
    if x.dtype == weight.dtype:
        multiply(x, weight, bias, out)
        ACTIVATE[act](out)
        if residual is not None:
            out.add_(residual)
        return
    for rows in split_blocks(x, MIXED_BLOCK_ROWS):
        block = torch.empty(len(x[rows]), weight.shape[0], dtype=weight.dtype, device=x.device)
        multiply(x[rows].to(weight.dtype), weight, bias, block)
        ACTIVATE[act](block)
        if residual is not None:
            block.add_(residual[rows])
        out[rows].copy_(block)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor) -> None:
    linear_act(x, weight, bias, "none", out=out)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)
