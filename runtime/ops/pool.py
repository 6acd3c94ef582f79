"""`padless::pool`: one row per sequence out of one row per token.

    hidden_states [num_tokens, hidden_size], cu_seqlens int32 [num_seqs + 1] -> fp32 [num_seqs, hidden_size]

`mode`: mean, max, cls (the first token) or last; `normalize` scales each row to length 1. The result is fp32 whatever
comes in, so everything after it is too.

`num_prompt_tokens`, int32 [num_seqs]: tokens at the beginning of each sequence that are left out, so that cls takes the
first token behind them, as sentence-transformers' `Pooling` with `include_prompt=False`. Where a sequence has no others
cls and last still take its first and last token, and mean and max are 0.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from runtime.ops.spec import Words, define_op

POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda span: span.mean(0),
    "max": lambda span: span.amax(0),
    "cls": lambda span: span[0],
    "last": lambda span: span[-1],
}
POOLING = Words("Pooling", tuple(POOLINGS))


def pool_shape(hidden_states: Tensor, cu_seqlens: Tensor) -> Tensor:
    return hidden_states.new_empty(cu_seqlens.shape[0] - 1, hidden_states.shape[1], dtype=torch.float32)


def pool(
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    mode: str,
    normalize: bool = False,
    num_prompt_tokens: Tensor | None = None,
) -> Tensor:
    """The reference: sequence by sequence."""
    if mode not in POOLINGS:
        raise ValueError(f"unknown pooling mode {mode!r}; there are {', '.join(POOLINGS)}")
    spans = [hidden_states[start:end].float() for start, end in pairwise(cu_seqlens.tolist())]
    num_skipped = [0] * len(spans) if num_prompt_tokens is None else num_prompt_tokens.tolist()
    rows = torch.stack([pool_span(span, skipped, mode) for span, skipped in zip(spans, num_skipped, strict=True)])
    return functional.normalize(rows, dim=-1) if normalize else rows


def pool_span(span: Tensor, num_skipped: int, mode: str) -> Tensor:
    """fp32 [hidden_size] of one sequence [seqlen, hidden_size] without its first `num_skipped` tokens."""
    if num_skipped < len(span):
        return POOLINGS[mode](span[num_skipped:])
    return POOLINGS[mode](span) if mode in ("cls", "last") else torch.zeros_like(span[0])


SPEC = define_op(pool, pool_shape, words={"mode": POOLING})
OP = SPEC.target
