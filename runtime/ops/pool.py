"""`padless::pool`: one row per sequence out of one row per token.

    hidden_states [num_tokens, hidden_size], cu_seqlens int32 [num_seqs + 1] -> fp32 [num_seqs, hidden_size]

`mode`: mean, max, cls (the first token) or last; `normalize` scales each row to length 1. The result is fp32 whatever
comes in, so everything after it is too.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda span: span.mean(0),
    "max": lambda span: span.amax(0),
    "cls": lambda span: span[0],
    "last": lambda span: span[-1],
}

torch.library.define(
    "padless::pool", "(Tensor hidden_states, Tensor cu_seqlens, str mode, bool normalize=False) -> Tensor"
)


@torch.library.register_fake("padless::pool")
def pool_shape(hidden_states: Tensor, cu_seqlens: Tensor, mode: str, normalize: bool = False) -> Tensor:
    return hidden_states.new_empty(cu_seqlens.shape[0] - 1, hidden_states.shape[1], dtype=torch.float32)


def pool(hidden_states: Tensor, cu_seqlens: Tensor, mode: str, normalize: bool = False) -> Tensor:
    """The reference: sequence by sequence."""
    if mode not in POOLINGS:
        raise ValueError(f"unknown pooling mode {mode!r}; there are {', '.join(POOLINGS)}")
    spans = [hidden_states[start:end].float() for start, end in pairwise(cu_seqlens.tolist())]
    rows = torch.stack([POOLINGS[mode](span) for span in spans])
    return functional.normalize(rows, dim=-1) if normalize else rows


torch.library.impl("padless::pool", "CompositeExplicitAutograd", pool)
OP = torch.ops.padless.pool.default
