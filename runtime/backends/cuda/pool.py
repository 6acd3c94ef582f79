"""One fp32 row per sequence: blocks of columns side by side, and then the lengths of whole rows."""

import triton
import triton.language as tl
from torch import Tensor

from runtime.backends.cuda.rows import to_rows

BLOCK_TOKENS = 32
BLOCK_COLUMNS = 64


@triton.jit
def pool_kernel(
    hidden_states,
    cu_seqlens,
    num_prompt_tokens,
    out,
    width,
    stride_token,
    MODE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """A block of columns of one sequence. A sequence without tokens gives 0."""
    sequence = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    is_column = columns < width
    first, end = tl.load(cu_seqlens + sequence), tl.load(cu_seqlens + sequence + 1)
    start = first
    if num_prompt_tokens is not None:
        start += tl.load(num_prompt_tokens + sequence)
    if MODE == "cls" or MODE == "last":
        row = tl.where(start < end, start, first)
        if MODE == "last":
            row = end - 1
        source = hidden_states + row.to(tl.int64) * stride_token + columns
        pooled = tl.load(source, mask=is_column & (first < end), other=0.0).to(tl.float32)
    else:
        pooled = reduce_tokens(
            hidden_states, start, end, columns, is_column, stride_token, MODE, BLOCK_TOKENS, BLOCK_COLUMNS
        )
    tl.store(out + sequence.to(tl.int64) * width + columns, pooled, mask=is_column)


@triton.jit
def reduce_tokens(
    hidden_states,
    start,
    end,
    columns,
    is_column,
    stride_token,
    MODE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Mean or largest of the rows from `start` to `end`; 0 of none. NaN is larger than anything, and stays."""
    tokens = tl.arange(0, BLOCK_TOKENS)
    empty = 0.0 if MODE == "mean" else float("-inf")
    reduced = tl.full([BLOCK_TOKENS, BLOCK_COLUMNS], empty, tl.float32)
    for token in range(start, end, BLOCK_TOKENS):
        rows = (token + tokens).to(tl.int64)
        source = hidden_states + (rows * stride_token)[:, None] + columns[None, :]
        values = tl.load(source, mask=(rows < end)[:, None] & is_column[None, :], other=empty).to(tl.float32)
        if MODE == "mean":
            reduced += values
        else:
            reduced = tl.maximum(reduced, values, propagate_nan=tl.PropagateNan.ALL)
    if MODE == "mean":
        pooled = tl.sum(reduced, 0) / tl.maximum(end - start, 1)
    else:
        has_nan = tl.max((reduced != reduced).to(tl.int32), 0)
        pooled = tl.where(has_nan > 0, float("nan"), tl.max(reduced, 0))
    return tl.where(start < end, pooled, 0.0)


@triton.jit
def normalize_kernel(out, width, BLOCK: tl.constexpr):
    """A row, scaled to length 1."""
    columns = tl.arange(0, BLOCK)
    places = out + tl.program_id(0).to(tl.int64) * width + columns
    values = tl.load(places, mask=columns < width, other=0.0)
    length = tl.sqrt_rn(tl.sum(values * values))
    tl.store(places, values / tl.where(length < 1e-12, 1e-12, length), mask=columns < width)


def pool(
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    mode: str,
    normalize: bool = False,
    num_prompt_tokens: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    hidden_states, (num_seqs, width) = to_rows(hidden_states), out.shape
    pool_kernel[(num_seqs, triton.cdiv(width, BLOCK_COLUMNS))](
        *(hidden_states, cu_seqlens, num_prompt_tokens, out, width, hidden_states.stride(0)),
        MODE=mode,
        BLOCK_TOKENS=BLOCK_TOKENS,
        BLOCK_COLUMNS=BLOCK_COLUMNS,
    )
    if normalize:
        block = triton.next_power_of_2(width)
        normalize_kernel[(num_seqs,)](out, width, BLOCK=block, num_warps=min(16, max(1, block // 512)))
