"""Neighbouring sequences of equal length form a run, which dense kernels take as one [n, length, ...] view: no copy."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

MAX_RUN_TOKENS = 1024
"""Longer runs are cut, so that temporaries stay in cache; a longer single sequence is a run of its own."""


class Run(NamedTuple):
    first_seq: int
    num_seqs: int
    first_token: int
    seqlen: int

    @property
    def tokens(self) -> slice:
        return slice(self.first_token, self.first_token + self.num_seqs * self.seqlen)

    @property
    def seqs(self) -> slice:
        return slice(self.first_seq, self.first_seq + self.num_seqs)


def iter_runs(borders: Sequence[int], max_tokens: int = MAX_RUN_TOKENS) -> Iterator[Run]:
    """Runs of the packed sequences with these borders (cu_seqlens as a list). `packing` sorts by length to help."""
    num_seqs = len(borders) - 1
    first = 0
    while first < num_seqs:
        seqlen = borders[first + 1] - borders[first]
        end = first + 1
        limit = first + max(1, max_tokens // seqlen)
        while end < min(num_seqs, limit) and borders[end + 1] - borders[end] == seqlen:
            end += 1
        yield Run(first, end - first, borders[first], seqlen)
        first = end
