"""For each sequence the largest logit of every token of the vocabulary, none of them kept beside it."""

import triton
import triton.language as tl
from torch import Tensor

from runtime.backends.cuda.multiply import multiply
from runtime.backends.cuda.rows import to_rows

ROWS, COLUMNS, DEPTH = 32, 64, 32


@triton.jit
def max_logits_kernel(
    rows,
    table,
    bias,
    cu_seqlens,
    out,
    vocab_size,
    width,
    stride_rows,
    stride_table,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """One sequence, a block of words. NaN is larger than anything, and stays."""
    sequence = tl.program_id(1)
    words = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    is_word = words < vocab_size
    first, end = tl.load(cu_seqlens + sequence), tl.load(cu_seqlens + sequence + 1)
    table_rows = table + words.to(tl.int64) * stride_table
    largest = tl.full([ROWS, COLUMNS], float("-inf"), tl.float32)
    for start in range(first, end, ROWS):
        tokens = (start + tl.arange(0, ROWS)).to(tl.int64)
        is_token = tokens < end
        logits = multiply(rows + tokens * stride_rows, table_rows, width, is_token, is_word, ROWS, COLUMNS, DEPTH)
        logits = tl.where(is_token[:, None], logits, float("-inf"))
        largest = tl.maximum(largest, logits, propagate_nan=tl.PropagateNan.ALL)
    has_nan = tl.max((largest != largest).to(tl.int32), 0)
    logit = tl.where(has_nan > 0, float("nan"), tl.max(largest, 0)) + tl.load(bias + words, mask=is_word, other=0.0)
    tl.store(out + sequence.to(tl.int64) * vocab_size + words, logit, mask=is_word)


def max_logits(rows: Tensor, table: Tensor, bias: Tensor, cu_seqlens: Tensor, *, out: Tensor) -> None:
    rows, (num_seqs, vocab_size) = to_rows(rows), out.shape
    max_logits_kernel[(triton.cdiv(vocab_size, COLUMNS), num_seqs)](
        *(rows, table, bias, cu_seqlens, out, vocab_size, rows.shape[1], rows.stride(0), table.stride(0)),
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        DEPTH=DEPTH,
        num_warps=8,
        num_stages=3,
    )
