"""`padless::max_logits`: for each sequence the largest logit of every token of the vocabulary, over all its rows.

    rows fp32 [num_tokens, width], table fp32 [vocab_size, width], bias fp32 [vocab_size],
    cu_seqlens int32 [num_seqs + 1] -> fp32 [num_seqs, vocab_size]

What SPLADE pools (Formal et al., 2021): log(1 + relu(x)) only grows with x, so the largest is taken first. The logits
of all rows, [num_tokens, vocab_size], are never in memory together: the table is multiplied in parts.
"""

import torch
from torch import Tensor
from torch.nn import functional

from runtime.ops.spec import define_op

PART_NUMBERS = 1 << 22
"""Logits in memory at one time, 16 MB."""


def max_logits_shape(table: Tensor, cu_seqlens: Tensor) -> Tensor:
    return table.new_empty(cu_seqlens.shape[0] - 1, table.shape[0], dtype=torch.float32)


def max_logits(rows: Tensor, table: Tensor, bias: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The reference."""
    out = max_logits_shape(table, cu_seqlens)
    write_max_logits(rows, table, bias, cu_seqlens, out=out)
    return out


def write_max_logits(rows: Tensor, table: Tensor, bias: Tensor, cu_seqlens: Tensor, *, out: Tensor) -> None:
    lengths = cu_seqlens.diff().long()
    step = max(1, PART_NUMBERS // len(rows))
    for start in range(0, len(table), step):
        part = slice(start, start + step)
        logits = functional.linear(rows, table[part], bias[part])
        out[:, part] = torch.segment_reduce(logits, "max", lengths=lengths, axis=0)


SPEC = define_op(max_logits, max_logits_shape)
OP = SPEC.target
