"""`padless::pool`: one row per sequence out of one row per token.

    hidden_states [num_tokens, hidden_size], cu_seqlens int32 [num_seqs + 1] -> fp32 [num_seqs, hidden_size]

`mode`: mean, max, cls (the first token) or last. The result is fp32 whatever comes in, so everything after it is too.
"""

from itertools import pairwise

import torch
from torch import Tensor

torch.library.define("padless::pool", "(Tensor hidden_states, Tensor cu_seqlens, str mode) -> Tensor")


@torch.library.register_fake("padless::pool")
def pool_shape(hidden_states: Tensor, cu_seqlens: Tensor, mode: str) -> Tensor:
    return hidden_states.new_empty(cu_seqlens.shape[0] - 1, hidden_states.shape[1], dtype=torch.float32)


def pool(hidden_states: Tensor, cu_seqlens: Tensor, mode: str) -> Tensor:
    """The reference: sequence by sequence."""
    borders = cu_seqlens.tolist()
    spans = [hidden_states[start:end].float() for start, end in pairwise(borders)]
    if mode == "mean":
        return torch.stack([span.mean(0) for span in spans])
    if mode == "max":
        return torch.stack([span.amax(0) for span in spans])
    if mode == "cls":
        return torch.stack([span[0] for span in spans])
    if mode == "last":
        return torch.stack([span[-1] for span in spans])
    raise ValueError(f"unknown pooling mode {mode!r}; there are mean, max, cls, last")


torch.library.impl("padless::pool", "CompositeExplicitAutograd", pool)
OP = torch.ops.padless.pool.default
