"""Penalties of logits by counts that stay on the device: see `runtime.engines.token_counts`."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK, NUM_WARPS = 2048, 4


@triton.jit(do_not_specialize=["num_rows"])
def penalise_kernel(logits, rows, counts, counters, how, num_rows, vocab_size, stride_row, BLOCK: tl.constexpr):
    """A piece of one row. First for all tokens before it, then for those that were generated, rounded as
    `runtime.sampling` does: rows with a history get the same."""
    place, ids = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_there = ids < vocab_size
    row, counter = tl.load(rows + place), tl.load(counters + place)
    repetition, presence = tl.load(how + place), tl.load(how + num_rows + place)
    frequency = tl.load(how + 2 * num_rows + place)
    count = tl.load(counts + counter * vocab_size + ids, mask=is_there, other=0).to(tl.int32)
    pointers = logits + row * stride_row + ids
    values = tl.load(pointers, mask=is_there, other=0.0)
    repeated = tl.where(values > 0, tl.div_rn(values, repetition), values * repetition)
    values = tl.where(count > 0, repeated, values)
    generated = count // 2
    values -= tl.where(generated > 0, tl.fma(frequency, generated.to(tl.float32), presence), 0.0)
    tl.store(pointers, values, mask=is_there)


def penalise(logits: Tensor, rows: Tensor, counts: Tensor, counters: Tensor, how: Tensor) -> None:
    """As `runtime.engines.token_counts.Penalise`."""
    num_rows, vocab_size = len(rows), logits.shape[1]
    block = min(BLOCK, max(16, triton.next_power_of_2(vocab_size)))
    grid = (num_rows, triton.cdiv(vocab_size, block))
    penalise_kernel[grid](
        *(logits, rows, counts, counters, how, num_rows, vocab_size, logits.stride(0)), BLOCK=block, num_warps=NUM_WARPS
    )
