"""Chosen requests to one packed Batch: end to end, no padding. Pure numpy."""

from collections.abc import Sequence

import numpy as np

from runtime.batch import Batch
from server.request import TokenSequence


def sort_by_length(sequences: Sequence[TokenSequence]) -> list[int]:
    """The order to pack in. Equal lengths become neighbours, which kernels run as one dense block."""
    return sorted(range(len(sequences)), key=lambda index: sequences[index].num_tokens)


def pack(sequences: Sequence[TokenSequence]) -> Batch:
    """Lay the sequences end to end, in the order given. None may be empty."""
    seqlens = np.array([sequence.num_tokens for sequence in sequences], dtype=np.int32)
    cu_seqlens = np.zeros(len(sequences) + 1, dtype=np.int32)
    np.cumsum(seqlens, out=cu_seqlens[1:])
    num_tokens = int(cu_seqlens[-1])
    token_type_ids = np.zeros(num_tokens, dtype=np.int64)
    for start, sequence in zip(cu_seqlens, sequences, strict=False):
        if sequence.token_type_ids is not None:
            token_type_ids[start : start + sequence.num_tokens] = sequence.token_type_ids
    return Batch(
        input_ids=np.concatenate([sequence.input_ids for sequence in sequences]).astype(np.int64),
        position_ids=np.arange(num_tokens) - np.repeat(cu_seqlens[:-1], seqlens),
        token_type_ids=token_type_ids,
        cu_seqlens=cu_seqlens,
        max_seqlen=int(seqlens.max()),
    )
