"""What generations of encoder-decoders are answers to: encoded once, into blocks of the KV cache that all answers and
beams of a generation read. Pure numpy.

A source is computed whole, in the step in which its answers begin: encoding and decoding of many requests share steps,
and nobody waits for anybody else's. As long as its blocks are not taken for something else, whoever asks about the very
same source finds it encoded.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from runtime.batch import CROSS_WEIGHTS, Arrays, Batch, FloatArray, Int32Array, Output, Sources
from runtime.kv_cache.blocks import BLOCK_SIZE, BlockHash, BlockTable, count_blocks
from server.wire.job import SOURCES, Job

Weights = FloatArray
"""`[num_rows, num_heads, num_keys]`: how much tokens look at each token of their source, head by head."""


@dataclass(slots=True, eq=False)
class Source:
    """Mutable: its blocks, and whether they hold what the encoder has made of it.

    `arrays`: what the encoder reads of it, by its names, each with a row for each token or frame.
    """

    arrays: Arrays
    table: BlockTable = field(default_factory=BlockTable)
    is_encoded: bool = False
    hashes: list[BlockHash] = field(default_factory=list)
    """Of its blocks, once somebody has asked for them."""

    @property
    def num_tokens(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def num_missing_blocks(self) -> int:
        return count_blocks(self.num_tokens) - len(self.table.block_ids)

    def list_hashes(self, salt: str) -> list[BlockHash]:
        """Each over all of the source, every token of which sees every other, and its block's place. A second of sound
        takes 0.03 ms."""
        if not self.hashes:
            whole = hashlib.blake2b(b"source:" + salt.encode(), digest_size=16)
            for name, values in sorted(self.arrays.items()):
                whole.update(name.encode() + np.ascontiguousarray(values).tobytes())
            self.hashes = [
                hashlib.blake2b(whole.digest() + place.to_bytes(8), digest_size=16).digest()
                for place in range(count_blocks(self.num_tokens))
            ]
        return self.hashes


def read_source(job: Job, index: int) -> Source | None:
    """Of one of a job's inputs; None where it has none."""
    arrays = {name: job.inputs[given].row(index) for given, name in SOURCES.items() if given in job.inputs}
    return Source(arrays) if arrays else None


def pack_sources(answering: Sequence[Source], new: Sequence[Source], weight_rows: Sequence[int]) -> Sources:
    """`answering`: of each sequence of a step. `new`: those that are to be encoded in it. `weight_rows`: tokens of the
    step that are to tell what they look at."""
    lengths = np.array([source.num_tokens for source in answering], np.int32)
    tables = pack_tables([each.table.block_ids for each in answering])
    return Sources(tables, lengths, pack_new(new) if new else None, np.array(weight_rows, np.int64))


def split_weights(batch: Batch, output: Output) -> list[Weights]:
    """What the tokens of each sequence of a step have told, of its own source; empty where nobody has asked."""
    sources = None if batch.paging is None else batch.paging.sources
    if sources is None or not len(sources.weight_rows):
        return []
    assert CROSS_WEIGHTS in output.arrays, "Only who is told of weights may ask for them. This is a bug."
    borders = np.searchsorted(sources.weight_rows, batch.cu_seqlens).tolist()
    lengths, told = sources.source_seqlens.tolist(), output.arrays[CROSS_WEIGHTS]
    return [told[first:last, :, :length] for (first, last), length in zip(pairwise(borders), lengths, strict=True)]


def pack_new(sources: Sequence[Source]) -> Batch:
    """As the encoder takes them, end to end."""
    seqlens = np.array([source.num_tokens for source in sources], np.int32)
    cu_seqlens = np.zeros(len(sources) + 1, np.int32)
    np.cumsum(seqlens, out=cu_seqlens[1:])
    owner = np.repeat(np.arange(len(sources)), seqlens)
    position_ids = np.arange(cu_seqlens[-1], dtype=np.int64) - cu_seqlens[:-1][owner]
    blocks = pack_tables([source.table.block_ids for source in sources])[owner, position_ids // BLOCK_SIZE]
    arrays = join_arrays([source.arrays for source in sources])
    arrays["position_ids"] = position_ids
    arrays["slot_mapping"] = blocks.astype(np.int64) * BLOCK_SIZE + position_ids % BLOCK_SIZE
    return Batch(arrays, cu_seqlens, int(seqlens.max()))


def join_arrays(each: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
    """Rows end to end; token ids cross the wire as int32."""
    joined = {name: np.concatenate([arrays[name] for arrays in each]) for name in each[0]}
    return {name: values.astype(np.int64) if name == "input_ids" else values for name, values in joined.items()}


def pack_tables(tables: Sequence[list[int]]) -> Int32Array:
    """int32 [num_seqs, max_blocks], filled up with the scratch block, which is 0.

    The width is a power of two: engines keep what they know of a shape, and answers get longer with every step.
    """
    width = 1 << (max(len(table) for table in tables) - 1).bit_length()
    packed = np.zeros((len(tables), width), np.int32)
    for row, table in zip(packed, tables, strict=True):
        row[: len(table)] = table
    return packed
