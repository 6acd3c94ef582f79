"""Experts through torch's GEMM: rows sorted by their expert, one product for each, and added back to their tokens."""

import torch
from torch import Tensor

from runtime.backends.plain.linear_act import linear_act
from runtime.backends.plain.linear_int8 import linear_int8
from runtime.ops.experts import apply_gate, choose_experts


def experts(
    x: Tensor,
    router: Tensor,
    up: Tensor,
    down: Tensor,
    top_k: int,
    act: str,
    is_gated: bool,
    renormalize: bool,
    up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    weights, chosen = choose_experts(x, router, top_k, renormalize)
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    tokens, row_weights = order // top_k, weights.flatten()[order, None]
    sums, start = torch.zeros(x.shape, device=x.device), 0
    for expert, count in enumerate(flat.bincount(minlength=len(router)).tolist()):
        rows = slice(start, start + count)
        start += count
        if not count:
            continue
        wide = multiply(x[tokens[rows]], up, up_scale, expert, "none" if is_gated else act)
        hidden = apply_gate(wide, act) if is_gated else wide
        sums.index_add_(0, tokens[rows], row_weights[rows] * multiply(hidden, down, down_scale, expert, "none"))
    out.copy_(sums)


def multiply(x: Tensor, weight: Tensor, scale: Tensor | None, expert: int, act: str) -> Tensor:
    """fp32, or the weight's type where rows are multiplied in that."""
    matrix = weight[expert]
    dtype = matrix.dtype if scale is None else torch.float32
    result = torch.empty(len(x), len(matrix), dtype=dtype, device=x.device)
    if scale is None:
        linear_act(x.to(dtype), matrix, None, act, out=result)
    else:
        linear_int8(x, matrix, scale[expert], None, act, out=result)
    return result
