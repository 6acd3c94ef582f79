"""What engines do with a batch on its way in: check it, make it tensors; and the batches they warm up with."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from runtime.batch import Batch
from runtime.engine import Progress
from runtime.memory.lifetimes import BatchShape


def list_arrays(batch: Batch) -> dict[str, npt.NDArray[Any]]:
    """The arguments of a model's forward by their names, all but `max_seqlen` and a decoder's cache."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "token_type_ids": batch.token_type_ids,
        "cu_seqlens": batch.cu_seqlens,
    }
    if batch.paging is not None:
        paging = batch.paging
        del arrays["token_type_ids"]
        arrays["slot_mapping"], arrays["block_table"] = paging.slot_mapping, paging.block_table
        arrays["cache_seqlens"], arrays["logit_rows"] = paging.cache_seqlens, paging.logit_rows
    return arrays


def to_tensors(batch: Batch, device: torch.device) -> dict[str, Any]:
    """The arrays as tensors on the device, and `max_seqlen`."""
    arrays = list_arrays(batch)
    tensors: dict[str, Any] = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return tensors | {"max_seqlen": batch.max_seqlen}


def make_batch(seqlens: list[int], token_id: int = 0) -> Batch:
    """A batch of sequences of these lengths, all of one token."""
    num_tokens = sum(seqlens)
    return Batch(
        input_ids=np.full(num_tokens, token_id, np.int64),
        position_ids=np.concatenate([np.arange(seqlen) for seqlen in seqlens]),
        token_type_ids=np.zeros(num_tokens, np.int64),
        cu_seqlens=np.cumsum([0, *seqlens], dtype=np.int32),
        max_seqlen=max(seqlens),
    )


def find_shape(batch: Batch, largest: BatchShape) -> BatchShape:
    """The batch's shape. Raises ValueError where it is over the largest that the engine was built for."""
    shape = BatchShape(batch.num_tokens, batch.num_seqs, batch.max_seqlen, batch.num_logits)
    if not largest.dominates(shape):
        raise ValueError(f"a batch of {tuple(shape)} is over the largest planned, {tuple(largest)}")
    return shape


def run_warmup(run: Callable[[Batch], object], largest: BatchShape, progress: Progress) -> None:
    """Run every warm-up batch, showing progress."""
    batches = warmup_batches(largest)
    for index, batch in enumerate(batches):
        progress("warming up", index, len(batches))
        run(batch)
    progress("warming up", len(batches), len(batches))


def warmup_batches(largest: BatchShape) -> list[Batch]:
    """The largest batch first, twice as short ones after it down to a single short sequence."""
    batches = []
    num_tokens = largest.num_tokens
    while num_tokens >= 8:
        seqlen = min(largest.max_seqlen, num_tokens)
        count = min(largest.num_seqs, num_tokens // seqlen)
        seqlens = [seqlen] * count
        rest = num_tokens - seqlen * count
        if rest and count < largest.num_seqs:
            seqlens.insert(0, rest)
        batches.append(make_batch(seqlens))
        num_tokens //= 2
    return batches
