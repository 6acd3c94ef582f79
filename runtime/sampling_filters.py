"""From processed logits to drawn tokens: temperature, top-k, top-p, min-p and the place where the probabilities pass a
number.

The definition: sort a row by probability, equal ones by id, and cumulate. As most rows end within their first few
hundred tokens, only those are looked for at first, and rows that need more are looked at again with more. The result is
the same, bit by bit, whichever width decides it and whatever other rows there are: probabilities come from a softmax
over the whole row, the sums over a prefix do not depend on what follows, and they are in float64, added one by one.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from runtime.batch import IntArray, Sampling

DoubleArray = npt.NDArray[np.float64]
DrawTokens = Callable[[Tensor, Sampling, IntArray], IntArray]
"""As `draw_tokens`, which may overwrite the logits."""

WIDTHS = (128, 1024, 4096)
"""How many of the most probable tokens are tried before a whole row is sorted: 0.1, 0.4, 1.3 and 4.7 ms for one row of
49,152 on one core."""
BLOCK_SIZE = 16
"""Tokens of which only the maximum is looked at first: near sqrt(vocab_size / WIDTHS[0]), where the work is least."""


def draw_tokens(logits: Tensor, sampling: Sampling, rows: IntArray) -> IntArray:
    """Token ids of `logits` [num_rows, vocab_size], which belong to `rows` of `sampling`; each of them has a finite
    maximum and a temperature over 0. The logits are overwritten.
    """
    probs = compute_probs(logits, torch.tensor(sampling.temperature[rows], device=logits.device))
    vocab_size = logits.shape[1]
    token_ids = np.zeros(len(rows), np.int64)
    pending = np.arange(len(rows))
    for width in [*(width for width in WIDTHS if width < vocab_size), vocab_size]:
        pending_probs = take_rows(probs, pending)
        ids, num_certain = rank_tokens(pending_probs, width)
        ranked_probs = pending_probs.gather(1, ids).double().cpu().numpy()
        places = choose_places(ranked_probs, num_certain, vocab_size, sampling, rows[pending])
        found = places >= 0
        token_ids[pending[found]] = ids.cpu().numpy()[found, places[found]]
        pending = pending[~found]
        if not len(pending):
            break
    assert not len(pending), "A row that is sorted as a whole always has a token. This is a bug."
    return token_ids


def compute_probs(logits: Tensor, temperature: Tensor) -> Tensor:
    """softmax(logits / temperature), in place: pages fresh from the system would take longer than the arithmetic.

    The maximum is subtracted first, so that no temperature however small makes infinities.
    """
    logits.sub_(logits.amax(-1, keepdim=True)).div_(temperature[:, None])
    return torch.softmax(logits, -1, out=logits)


def choose_places(
    probs: DoubleArray, num_certain: IntArray, vocab_size: int, sampling: Sampling, rows: IntArray
) -> IntArray:
    """The place of each row's token among its most probable ones, or -1 where `width` of them do not decide it.

    `probs` [num_rows, width] descend; the tokens of the first `num_certain` [num_rows] places are known. Every filter
    keeps a prefix, so the last kept place is that before the first one which any of them excludes. What is kept is
    renormalised by its own sum, a whole row by that of its softmax, which rounding leaves within 2e-5 of 1.
    """
    width = probs.shape[1]
    each = np.arange(len(rows))
    top_k, top_p, min_p = sampling.top_k[rows], sampling.top_p[rows], sampling.min_p[rows]
    max_kept = np.where(top_k > 0, np.minimum(top_k, vocab_size), vocab_size)
    has_top_k = max_kept < vocab_size
    sums = probs.cumsum(1)

    top_k_mass = np.where(has_top_k, sums[each, np.minimum(max_kept, width) - 1], 1.0)
    excluded = (np.arange(width) >= max_kept[:, None]) | (probs < min_p[:, None] * probs[:, :1]) | (probs == 0)
    excluded[:, 1:] |= (top_p < 1)[:, None] & (sums[:, :-1] >= (top_p * top_k_mass)[:, None])
    excluded[:, 0] = False
    has_end = excluded.any(1)
    num_kept = np.where(has_end, excluded.argmax(1), width)

    is_filtered = has_top_k | (top_p < 1) | (min_p > 0)
    mass = np.where(is_filtered, sums[each, num_kept - 1], 1.0)
    passed = sums <= (sampling.uniforms[rows] * mass)[:, None]
    places = np.minimum(passed.sum(1), num_kept - 1)
    is_mass_known = (max_kept <= width) | (~has_top_k & (has_end | ~is_filtered))
    return np.where(is_mass_known & (places < num_certain), places, -1)


def rank_first(scores: Tensor, num_first: int) -> Tensor:
    """Ids int64 [num_rows, num_first] of each row's largest scores, in descending order, equal ones by id."""
    ids, num_certain = rank_tokens(scores, min(2 * num_first, scores.shape[1]))
    unsure = np.flatnonzero(num_certain < num_first)
    if len(unsure):
        full_order, _ = rank_tokens(take_rows(scores, unsure), scores.shape[1])
        ids[torch.tensor(unsure, device=ids.device)] = full_order[:, : ids.shape[1]]
    return ids[:, :num_first]


def rank_tokens(scores: Tensor, width: int) -> tuple[Tensor, IntArray]:
    """Ids int64 [num_rows, width] of each row's largest scores, in descending order, equal ones by id; and how many
    are certain: of tokens equal to the last of them, others may have been left out. Forbidden tokens (-inf), of which
    it never matters which are there, count as certain.
    """
    if width == scores.shape[1]:
        order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
        return order, np.full(len(scores), width)
    ids = find_largest(scores, width).sort(-1).values
    ranked, order = torch.sort(scores.gather(1, ids), dim=-1, descending=True, stable=True)
    is_certain = (ranked > ranked[:, -1:]) | ranked.isneginf()
    return ids.gather(1, order), is_certain.sum(-1).cpu().numpy()


def find_largest(scores: Tensor, width: int) -> Tensor:
    """Ids int64 [num_rows, width] of each row's largest scores, in any order; of equal ones any.

    A token outside the `width` blocks with the largest maxima has at least `width` tokens over it, or equal to it, in
    those. A block is a column of the row seen as [BLOCK_SIZE, num_blocks], for maxima over whole rows of that are fast.
    """
    num_blocks = scores.shape[1] // BLOCK_SIZE
    if num_blocks <= 2 * width:
        return scores.topk(width, sorted=False).indices
    num_in_blocks = num_blocks * BLOCK_SIZE
    maxima = scores[:, :num_in_blocks].unflatten(1, (BLOCK_SIZE, num_blocks)).amax(1)
    blocks = maxima.topk(width, sorted=False).indices
    starts = torch.arange(0, num_in_blocks, num_blocks, device=scores.device)
    rest = torch.arange(num_in_blocks, scores.shape[1], device=scores.device)
    ids = torch.cat([(blocks[:, None, :] + starts[:, None]).flatten(1), rest.expand(len(scores), -1)], 1)
    return ids.gather(1, scores.gather(1, ids).topk(width, sorted=False).indices)


def take_rows(values: Tensor, rows: IntArray) -> Tensor:
    """`values[rows]` for ascending rows; `values` itself, not a copy, where these are all."""
    if len(rows) == len(values):
        return values
    return values[torch.tensor(rows, device=values.device)]
