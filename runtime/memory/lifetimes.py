"""What the planner knows of a graph: for each intermediate tensor when it lives and how large it gets.

Pure Python. Sizes are formulas in the shape of a batch, so one captured graph serves batches of any shape.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

ALIGNMENT = 64
"""Bytes; a cache line, and enough for any vector load."""


class BatchShape(NamedTuple):
    """The numbers every tensor size depends on."""

    num_tokens: int
    num_seqs: int
    max_seqlen: int
    num_logits: int = 0
    """Rows of logits over words."""

    def dominates(self, other: "BatchShape") -> bool:
        """No tensor of a batch shaped `other` is larger than in one shaped `self`."""
        return all(mine >= theirs for mine, theirs in zip(self, other, strict=True))


SYMBOLS = (*BatchShape._fields, "max_blocks", "num_blocks", "max_source_blocks", "num_weight_rows")
"""What dimensions are made of: a batch's shape, and the sizes of what it brings along. Planned tensors know the former
alone."""


@dataclass(frozen=True, slots=True)
class Formula:
    """A polynomial over SYMBOLS with non-negative coefficients.

    `terms`: (coefficient, power of num_tokens, of num_seqs, ...) in the order of SYMBOLS, each power once; trailing
    zeros may be left out.
    """

    terms: tuple[tuple[int, ...], ...]

    @classmethod
    def constant(cls, value: int) -> "Formula":
        return cls(((value,),))

    @property
    def is_constant(self) -> bool:
        return not any(any(powers) for _, *powers in self.terms)

    def evaluate(self, symbols: Sequence[int]) -> int:
        """`symbols`: the values of SYMBOLS; of as many as the formula has powers of."""
        total = 0
        for coefficient, *powers in self.terms:
            for number, power in zip(symbols, powers, strict=False):
                coefficient *= number**power
            total += coefficient
        return total

    def times(self, other: "Formula") -> "Formula":
        product: dict[tuple[int, ...], int] = {}
        for c, *powers in self.terms:
            for d, *more in other.terms:
                key = tuple(p + q for p, q in zip_longest(powers, more, fillvalue=0))
                product[key] = product.get(key, 0) + c * d
        return Formula(tuple((c, *powers) for powers, c in product.items()))

    def plus(self, other: "Formula") -> "Formula":
        total: dict[tuple[int, ...], int] = {}
        for c, *powers in (*self.terms, *other.terms):
            total[tuple(powers)] = total.get(tuple(powers), 0) + c
        return Formula(tuple((c, *powers) for powers, c in total.items() if c))

    def __str__(self) -> str:
        terms = [
            "*".join(
                [str(c)] * (c != 1 or not any(powers))
                + [n for n, p in zip(SYMBOLS, powers, strict=False) for _ in range(p)]
            )
            for c, *powers in self.terms
        ]
        return " + ".join(terms) or "0"


@dataclass(frozen=True, slots=True)
class TensorLife:
    """One intermediate: written at step `start`, last read at step `end`, both inclusive."""

    name: str
    start: int
    end: int
    num_bytes: Formula


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The same for one shape of batch, in aligned bytes."""

    start: int
    end: int
    num_bytes: int

    def overlaps(self, other: "Lifetime") -> bool:
        return self.start <= other.end and other.start <= self.end


def size_lifetimes(lives: Iterable[TensorLife], shape: BatchShape) -> list[Lifetime]:
    """Evaluate every size for `shape`, rounded up to the alignment."""
    return [Lifetime(life.start, life.end, align_up(life.num_bytes.evaluate(shape))) for life in lives]


def live_peak(lifetimes: Iterable[Lifetime]) -> int:
    """The largest sum of bytes alive at one step: no plan can need less."""
    change: dict[int, int] = {}
    for life in lifetimes:
        change[life.start] = change.get(life.start, 0) + life.num_bytes
        change[life.end + 1] = change.get(life.end + 1, 0) - life.num_bytes
    live = peak = 0
    for step in sorted(change):
        live += change[step]
        peak = max(peak, live)
    return peak


def round_shape(shape: BatchShape, largest: BatchShape) -> BatchShape:
    """The bucket of `shape`: each number rounded up by at most an eighth, never past `largest`."""
    return BatchShape(*(min(round_up_eighth(n), limit) for n, limit in zip(shape, largest, strict=True)))


def round_up_eighth(number: int) -> int:
    """Up to the next of 8 steps per power of two, in steps of 8 at least: 70 -> 72, 1000 -> 1024."""
    step = max(8, 1 << max(0, (number - 1).bit_length() - 4))
    return -(-number // step) * step


def align_up(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
