"""Tokens drawn on the device: `runtime.sampling_filters.draw_tokens`, without rows being sorted or leaving it.

Every filter keeps the most probable tokens down to some place, and so does the number that is drawn: the place is where
the tokens that are at least so probable are enough of them, or weigh enough. It is found by bisection over the bits of
fp32 weights, exp((logit - largest) / temperature), which are in their order. A row is read some thirty times for each
filter that it has, from the device's cache. Sums are fp32, so that a number within 1e-6 of the border between two
tokens may draw the other one than a CPU does.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.batch import IntArray, Sampling

BLOCK, NUM_WARPS = 4096, 8
ONE = tl.constexpr(0x3F800000)
"""The bits of 1.0, the largest weight."""
NUM_HALVINGS = tl.constexpr(30)
"""Until one number is left of so many."""
LEAST_TEMPERATURE = 1e-30
"""Divides by no denormal number, which devices take for 0; what differs is infinitely improbable all the same."""
BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))


@triton.jit
def load_weights(row, start, vocab_size, largest, temperature, BLOCK: tl.constexpr):
    """Those of the tokens from `start` on, and their bits; 0 of forbidden ones."""
    ids = start + tl.arange(0, BLOCK)
    logits = tl.load(row + ids, mask=ids < vocab_size, other=float("-inf"))
    weights = tl.exp((logits - largest) / temperature)
    return weights, weights.to(tl.int32, bitcast=True)


@triton.jit
def measure(row, vocab_size, largest, temperature, bits, BLOCK: tl.constexpr):
    """How many weights there are from `bits` on, and their sum."""
    count, mass = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab_size, BLOCK):
        weights, found = load_weights(row, start, vocab_size, largest, temperature, BLOCK)
        count += (found >= bits).to(tl.int32)
        mass += tl.where(found >= bits, weights, 0.0)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def find_place(row, vocab_size, largest, temperature, wanted, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """The largest weight, as bits, from which on there are `wanted` tokens, or that mass, or (draw) more than it; the
    least that is not 0 where that is not enough. And how many, and how much, is over it."""
    low, high = 1, ONE + 1
    for _ in range(NUM_HALVINGS):
        middle = (low + high) // 2
        count, mass = measure(row, vocab_size, largest, temperature, middle, BLOCK)
        if KIND == "count":
            is_enough = count >= wanted
        elif KIND == "mass":
            is_enough = mass >= wanted
        else:
            is_enough = mass > wanted
        low, high = tl.where(is_enough, middle, low), tl.where(is_enough, high, middle)
    count, mass = measure(row, vocab_size, largest, temperature, low + 1, BLOCK)
    return low, count, mass


@triton.jit
def find_token(row, vocab_size, largest, temperature, bits, place, BLOCK: tl.constexpr):
    """Of the tokens of that weight the one at `place`, or the last if there are fewer."""
    token, num_before = 0, 0
    for start in range(0, vocab_size, BLOCK):
        _, found = load_weights(row, start, vocab_size, largest, temperature, BLOCK)
        is_equal = (found == bits).to(tl.int32)
        places = num_before + tl.cumsum(is_equal, 0) - 1
        is_hit = (is_equal > 0) & (places <= place)
        token = tl.maximum(token, tl.max(tl.where(is_hit, start + tl.arange(0, BLOCK), 0), 0))
        num_before += tl.sum(is_equal, 0)
    return token


@triton.jit(do_not_specialize=["num_rows"])
def draw_kernel(logits, how, token_ids, num_rows, vocab_size, stride_row, BLOCK: tl.constexpr):
    """One row. `how`: temperature, top-k, top-p, min-p and the number that is drawn, [5, num_rows]."""
    number = tl.program_id(0)
    row, how = logits + number.to(tl.int64) * stride_row, how + number
    temperature, top_k = tl.load(how), tl.load(how + num_rows).to(tl.int32)
    top_p, min_p = tl.load(how + 2 * num_rows), tl.load(how + 3 * num_rows)
    largest_each = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        largest_each = tl.maximum(largest_each, tl.load(row + ids, mask=ids < vocab_size, other=float("-inf")))
    largest = tl.max(largest_each, 0)

    # Kept is all over `last`, which is `count` and `mass`, and of the tokens equal to it the first `num_last`.
    last, num_last = tl.maximum(min_p.to(tl.int32, bitcast=True), 1), vocab_size
    count, mass = measure(row, vocab_size, largest, temperature, last + 1, BLOCK)
    all_count, all_mass = measure(row, vocab_size, largest, temperature, 1, BLOCK)
    if (top_k > 0) & (top_k < all_count):
        place, over, mass_over = find_place(row, vocab_size, largest, temperature, top_k, "count", BLOCK)
        all_mass = mass_over + (top_k - over) * place.to(tl.float32, bitcast=True)
        if place >= last:
            last, num_last, count, mass = place, top_k - over, over, mass_over
    if top_p < 1.0:
        wanted = top_p * all_mass
        place, over, mass_over = find_place(row, vocab_size, largest, temperature, wanted, "mass", BLOCK)
        needed = tl.ceil((wanted - mass_over) / place.to(tl.float32, bitcast=True)).to(tl.int32)
        needed = tl.maximum(needed, 1)
        if place > last:
            last, num_last, count, mass = place, needed, over, mass_over
        elif place == last:
            num_last = tl.minimum(num_last, needed)

    upper_count, _ = measure(row, vocab_size, largest, temperature, last, BLOCK)
    num_last = tl.minimum(num_last, upper_count - count)
    mass += num_last * last.to(tl.float32, bitcast=True)
    wanted = tl.load(how + 4 * num_rows) * mass
    drawn, _, mass_over = find_place(row, vocab_size, largest, temperature, wanted, "draw", BLOCK)
    place = ((wanted - mass_over) / drawn.to(tl.float32, bitcast=True)).to(tl.int32)
    if drawn <= last:
        drawn, place = last, tl.minimum(place, num_last - 1)
    token = find_token(row, vocab_size, largest, temperature, drawn, place, BLOCK)
    tl.store(token_ids + number, token)


def draw_tokens(logits: Tensor, sampling: Sampling, rows: IntArray) -> IntArray:
    """As that of `runtime.sampling_filters`. The logits stay as they are."""
    num_rows, vocab_size = logits.shape
    how = np.stack(
        [
            np.maximum(sampling.temperature[rows], LEAST_TEMPERATURE),
            np.clip(sampling.top_k[rows], 0, vocab_size),
            sampling.top_p[rows],
            sampling.min_p[rows],
            np.minimum(sampling.uniforms[rows].astype(np.float32), BELOW_ONE),
        ]
    ).astype(np.float32)
    token_ids = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    how_there = torch.from_numpy(how).to(logits.device)
    block = min(BLOCK, max(16, triton.next_power_of_2(vocab_size)))
    draw_kernel[(num_rows,)](
        *(logits, how_there, token_ids, num_rows, vocab_size, logits.stride(0)), BLOCK=block, num_warps=NUM_WARPS
    )
    return token_ids.cpu().numpy().astype(np.int64)
