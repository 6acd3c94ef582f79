"""Sequences divided into batches that are each padded to their longest, at the least cost in all. Pure.

TurboTransformers' dynamic programme (Fang et al., PPoPP 2021, algorithm 3): sorted by length, the best division of the
first i sequences ends with some batch of k, before which comes the best division of the first i - k. A division into
neighbours is the best of all divisions where a batch's cost depends only on how many sequences it has and on the
longest, and grows with both: whoever gives the largest batch's place to the longest sequences, the next batch's to the
next ones, and so on, makes no batch longer than it was.

Other versions multiply a cost by the batch's size that is of the whole batch already, or step back one sequence too far
and lose it. Here costs are of whole batches, and every sequence is in one batch.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int64]
Costs = npt.NDArray[np.float64]

ReadCosts = Callable[[Lengths, Lengths], Costs]
"""Numbers of sequences `[a]` and lengths that these are padded to `[b]`, to the costs of such batches `[b, a]`."""

BLOCK = 64
"""Lengths whose costs are read at a time: long ones are needed for few numbers of sequences only, and products of small
matrices do not wake BLAS's threads, which are the engine's cores."""


def partition(
    lengths: Lengths, read_costs: ReadCosts, *, max_batch_requests: int, max_batch_tokens: int
) -> list[range]:
    """The places of each batch's sequences, from the shortest batch to the longest.

    `lengths`: `[num_seqs]`, ascending. No batch has more than so many sequences, and none but one of a single sequence
    more than so many tokens, padding included. O(num_seqs * max_batch_requests), of which numpy does the second factor.
    """
    num_seqs = len(lengths)
    if num_seqs == 0:
        return []
    distinct, which = np.unique(lengths, return_inverse=True)
    most = np.clip(max_batch_tokens // distinct, 1, min(max_batch_requests, num_seqs))
    costs: list[Costs] = []
    for first in range(0, len(distinct), BLOCK):
        costs += list(read_costs(np.arange(1, most[first] + 1), distinct[first : first + BLOCK]))
    sizes = find_sizes(costs, which.tolist(), most.tolist())
    batches = []
    end = num_seqs
    while end > 0:
        batches.append(range(end - sizes[end], end))
        end -= sizes[end]
    return batches[::-1]


def find_sizes(costs: list[Costs], which: list[int], most: list[int]) -> list[int]:
    """How large the last batch of the best division of the first i sequences is, for every i; of none it is 0.

    Sequence i is of length number `which[i]`; `costs[w][k - 1]` is that of k sequences padded to length number w, of
    which there may be `most[w]`.
    """
    num_seqs = len(which)
    # Of the first i sequences the least is at num_seqs - i: so what is before a batch of 1, 2, 3... is read forwards.
    least = np.zeros(num_seqs + 1)
    sizes = [0]
    for end in range(1, num_seqs + 1):
        length, place = which[end - 1], num_seqs - end
        num_sizes = min(end, most[length])
        sums = least[place + 1 : place + 1 + num_sizes] + costs[length][:num_sizes]
        best = int(sums.argmin())
        least[place] = sums[best]
        sizes.append(best + 1)
    return sizes
