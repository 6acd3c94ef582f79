"""Shapes of steps that a CUDA graph is recorded for, and batches filled up to them.

A graph repeats the launches of one shape: grids, and Python's numbers, are those it was recorded with. A batch of fewer
tokens is filled up with scratch sequences: of token 0 at position 0, whose keys go to the scratch block, and whose
outputs nobody reads. Each has at least one token and no more than the shape's longest, so that whatever a model makes
of `cu_seqlens` holds for them too.
"""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.batch import INPUTS, Arrays, Batch, Int32Array
from runtime.engines.transfer import ARRAYS
from runtime.kv_cache.blocks import SCRATCH_BLOCK, count_blocks
from runtime.memory.lifetimes import BatchShape

MAX_TOKENS = 2048
"""Of a recorded step. Larger ones compute for longer than Python needs to launch them: where the border lies is a guess
until a device has been asked."""
LEAST_BLOCKS = 16
assert SCRATCH_BLOCK == 0, "What is filled up with zeros leads there."


class Bucket(NamedTuple):
    """`max_blocks`: columns of the block table; 0 of an encoder."""

    shape: BatchShape
    max_blocks: int = 0


class Buckets:
    """Of an engine for batches up to `largest` that reads the inputs `read`. Generators: of steps with one token of
    each sequence, which all but prompts are; encoders: of any.

    Of encoder-decoders there are none for the decoder: how wide its sources are is one dimension more.
    """

    def __init__(self, largest: BatchShape, read: Collection[str]) -> None:
        self.largest = largest
        self.is_decoder = "block_table" in read
        self.reads_logit_rows = "logit_rows" in read
        self.widths = list(multiply(LEAST_BLOCKS, count_blocks(largest.max_seqlen), 2))
        self.seqs = list(multiply(2, largest.num_seqs, 4))
        most = min(largest.num_tokens, MAX_TOKENS)
        if self.is_decoder:
            most = min(most, largest.num_seqs, largest.num_logits)
        self.tokens = list(climb(most))
        self.all = [] if "source_table" in read else sorted(self.list_all(), reverse=True)
        """The largest first."""

    def list_all(self) -> Iterator[Bucket]:
        if self.is_decoder:
            for num_tokens in self.tokens:
                yield from (shape_decoding(num_tokens, width) for width in self.widths)
            return
        for num_tokens in self.tokens:
            for num_seqs in self.seqs:
                bucket = self.shape_encoding(num_tokens, num_seqs)
                if num_seqs <= num_tokens <= num_seqs * bucket.shape.max_seqlen:
                    yield bucket

    def shape_encoding(self, num_tokens: int, num_seqs: int) -> Bucket:
        max_seqlen, num_logits = min(num_tokens, self.largest.max_seqlen), min(num_seqs, self.largest.num_logits)
        return Bucket(BatchShape(num_tokens, num_seqs, max_seqlen, num_logits))

    def find(self, batch: Batch) -> Bucket | None:
        """The least that the batch can be filled up to; one of zeros where it is over all of them. None where no
        scratch sequences would fill it up."""
        if self.is_decoder:
            assert batch.paging is not None, "A decoder's batch has paging. This is a bug."
            num_tokens = find_rung(self.tokens, batch.num_tokens)
            width = find_rung(self.widths, batch.paging.block_table.shape[1])
            if batch.max_seqlen > 1 or batch.num_logits > num_tokens:
                return None
            return shape_decoding(num_tokens, width)
        num_seqs = find_rung(self.seqs, batch.num_seqs + 1)  # one of them is a scratch sequence
        num_added = num_seqs - batch.num_seqs
        num_tokens = find_rung(self.tokens, batch.num_tokens + num_added)
        bucket = self.shape_encoding(num_tokens, num_seqs)
        fits = num_tokens - batch.num_tokens <= num_added * bucket.shape.max_seqlen
        has_rows = not self.reads_logit_rows or batch.num_logits <= bucket.shape.num_logits
        return bucket if fits and has_rows else None


def shape_decoding(num_seqs: int, max_blocks: int) -> Bucket:
    """A token, and a row of logits, of each."""
    return Bucket(BatchShape(num_seqs, num_seqs, 1, num_seqs), max_blocks)


def climb(most: int) -> Iterator[int]:
    """Powers of two and what lies half-way between, up to `most`: 1, 2, 3, 4, 6, 8, 12, ..."""
    rung = 1
    while rung < most:
        yield rung
        if rung > 1 and rung * 3 // 2 < most:
            yield rung * 3 // 2
        rung *= 2
    yield most


def multiply(least: int, most: int, factor: int) -> Iterator[int]:
    """`least`, so many times that, and so on, up to `most`."""
    while least < most:
        yield least
        least *= factor
    yield most


def find_rung(rungs: list[int], number: int) -> int:
    """The least that is no smaller; 0 where there is none."""
    return next((rung for rung in rungs if rung >= number), 0)


def fill_up(arrays: Arrays, shape: BatchShape, bucket: Bucket) -> Arrays:
    """The arrays of a batch of this shape, followed by those of scratch sequences."""
    filled = {name: widen(name, array, bucket) for name, array in arrays.items()}
    lengths = divide(bucket.shape.num_tokens - shape.num_tokens, bucket.shape.num_seqs - shape.num_seqs)
    if "cu_seqlens" in filled:
        filled["cu_seqlens"][shape.num_seqs + 1 :] = shape.num_tokens + lengths.cumsum()
    for name in filled.keys() & {"num_keys", "cache_seqlens"}:
        filled[name][shape.num_seqs :] = lengths
    if "logit_rows" in filled:  # in ascending order
        filled["logit_rows"][len(arrays["logit_rows"]) :] = bucket.shape.num_tokens - 1
    return filled


def widen(name: str, array: npt.NDArray[Any], bucket: Bucket) -> npt.NDArray[Any]:
    """With zeros."""
    sizes = count_rows(bucket)
    dims = [sizes.get(dim, size) for dim, size in zip(INPUTS[name].dims, array.shape, strict=True)]
    wide = np.zeros(dims, array.dtype)
    wide[tuple(slice(size) for size in array.shape)] = array
    return wide


def count_rows(bucket: Bucket) -> dict[str | int, int]:
    """By the names of dimensions."""
    num_tokens, num_seqs, _, num_logits = bucket.shape
    return {
        "num_tokens": num_tokens,
        "num_seqs": num_seqs,
        "num_seqs + 1": num_seqs + 1,
        "num_logits": num_logits,
        "max_blocks": bucket.max_blocks,
    }


def divide(num_tokens: int, num_seqs: int) -> Int32Array:
    """Lengths of so many sequences with so many tokens in all, as even as can be."""
    lengths = np.full(num_seqs, num_tokens // max(num_seqs, 1), np.int32)
    lengths[: num_tokens - int(lengths.sum())] += 1
    return lengths


def make_scratch(bucket: Bucket, read: Collection[str], num_features: int) -> Arrays:
    """A step of scratch sequences alone, of all arrays in `read`."""
    nothing = BatchShape(0, 0, 0, 0)
    sizes = count_rows(Bucket(nothing)) | {"num_features": num_features}
    arrays = {
        name: np.zeros([sizes[dim] for dim in INPUTS[name].dims], INPUTS[name].dtype) for name in ARRAYS if name in read
    }
    return fill_up(arrays, nothing, bucket)
