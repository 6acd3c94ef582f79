"""`padless::lora`: low-rank adapters (Hu et al., 2021), of which each row has its own or none, and what activates it.

    rows [num_rows, out_features], x [num_rows, in_features], up fp32 [num_adapters, rank, out_features],
        adapter_ids int64 [num_rows], down fp32 [num_adapters, rank, in_features] or None -> like rows

A row of the adapter i, counted from 1, becomes act(row + (x · down[i - 1]ᵀ) · up[i - 1]); one of 0, which is none,
act(row). Without `down` the rows of x are those products already, [num_rows, rank]: an embedding looks them up. All in
fp32, rounded once.
"""

import torch
from torch import Tensor

from runtime.ops.linear_act import ACTIVATION, ACTIVATIONS
from runtime.ops.spec import define_op


def lora_shape(rows: Tensor) -> Tensor:
    return torch.empty_like(rows, memory_format=torch.contiguous_format)


def lora(
    rows: Tensor, x: Tensor, up: Tensor, adapter_ids: Tensor, down: Tensor | None = None, act: str = "none"
) -> Tensor:
    """The reference: one adapter after the other. Raises IndexError where there is none of an id."""
    if adapter_ids.min() < 0 or adapter_ids.max() > len(up):
        raise IndexError("adapter_ids are out of range")
    result = rows.float()
    for adapter in range(len(up)):
        own = (adapter_ids == adapter + 1).nonzero()[:, 0]
        narrow = x[own].float() if down is None else x[own].float() @ down[adapter].float().T
        result = result.index_add(0, own, narrow @ up[adapter].float())
    return ACTIVATIONS[act](result).to(rows.dtype)


SPEC = define_op(lora, lora_shape, words={"act": ACTIVATION})
OP = SPEC.target
