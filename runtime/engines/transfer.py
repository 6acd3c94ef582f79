"""What engines do with a batch on its way in: check it, make it tensors; and the batches they warm up with."""

from collections.abc import Callable, Collection, Mapping
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from runtime.batch import INPUTS, Arrays, Batch, Output, find_middles
from runtime.engine import Progress
from runtime.memory.lifetimes import BatchShape, align_up


def list_arrays(batch: Batch) -> Arrays:
    """All arrays of the batch by their names in `INPUTS`."""
    arrays = batch.arrays | {"cu_seqlens": batch.cu_seqlens}
    if batch.paging is not None:
        paging = batch.paging
        arrays["slot_mapping"], arrays["block_table"] = paging.slot_mapping, paging.block_table
        arrays["cache_seqlens"], arrays["logit_rows"] = paging.cache_seqlens, paging.logit_rows
        if paging.sources is not None:
            sources = paging.sources
            arrays["source_table"], arrays["source_seqlens"] = sources.source_table, sources.source_seqlens
            arrays["weight_rows"] = sources.weight_rows
    return arrays


WARMUP_TOKENS = 8
ARRAYS = [name for name in INPUTS if name not in ("max_seqlen", "kv_cache")]
"""The others are a number, and what stays with the engine."""
DTYPES = {name: np.dtype(spec.dtype) for name, spec in INPUTS.items()}
"""Comparing with a type's name takes longer than all the rest of a check."""


def take_arrays(batch: Batch, read: Collection[str], num_features: int = 0) -> Arrays:
    """Those that a model reads, in the order of `INPUTS`. `max_seqlen` and a cache are no arrays of the batch.

    Raises ValueError where the batch lacks one, or one has another type or shape than `INPUTS` says.
    """
    arrays = list_arrays(batch)
    wanted = [name for name in ARRAYS if name in read]
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise ValueError(f"the model reads {', '.join(missing)}, which the batch does not have: put it into its arrays")
    sizes: dict[str | int, int] = {
        "num_tokens": batch.num_tokens,
        "num_seqs": batch.num_seqs,
        "num_seqs + 1": batch.num_seqs + 1,
        "num_features": num_features,
    }
    for name in wanted:
        check_array(name, arrays[name], sizes)
    # Kernels read them where they are.
    return {name: np.ascontiguousarray(arrays[name]) for name in wanted}


def check_array(name: str, array: npt.NDArray[Any], sizes: Mapping[str | int, int]) -> None:
    """Kernels trust types and lengths. `sizes`: of the symbols that are known; others may be anything."""
    spec, shape = INPUTS[name], array.shape
    is_right = array.dtype == DTYPES[name] and len(shape) == len(spec.dims)
    if not is_right or any(sizes.get(dim, size) != size for dim, size in zip(spec.dims, shape, strict=True)):
        wanted = ", ".join(f"{sizes[dim]} ({dim})" if dim in sizes else str(dim) for dim in spec.dims)
        raise ValueError(f"{name} is {array.dtype} {list(shape)}; it must be {spec.dtype} [{wanted}]")


def to_tensors(batch: Batch, device: torch.device) -> dict[str, Any]:
    """All arrays of the batch as tensors on the device, and `max_seqlen`."""
    tensors: dict[str, Any] = {name: torch.from_numpy(array).to(device) for name, array in list_arrays(batch).items()}
    return tensors | {"max_seqlen": batch.max_seqlen}


def wrap_arrays(arrays: Arrays) -> dict[str, Tensor]:
    """For kernels that read them where they are."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class Staging:
    """Memory through which a step's arrays reach a device in one copy: some of the host's, pinned, and some there.

    Mutable: both buffers, which grow. Arrays of the same shapes come to lie at the same addresses again.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.host = self.there = torch.empty(0, dtype=torch.uint8)
        self.copied = torch.cuda.Event() if device.type == "cuda" else None

    def send(self, arrays: Arrays) -> dict[str, Tensor]:
        """In memory that belongs to the next call, ordered behind what the device computes. Waits for nothing but its
        own last copy, which is long done where a step's outputs have been read."""
        ends = list(accumulate(align_up(array.nbytes) for array in arrays.values()))
        starts = [0, *ends[:-1]]
        self.grow(ends[-1])
        if self.copied is not None:
            self.copied.synchronize()
        host = self.host.numpy()
        for start, array in zip(starts, arrays.values(), strict=True):
            host[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        self.there[: ends[-1]].copy_(self.host[: ends[-1]], non_blocking=True)
        if self.copied is not None:
            self.copied.record()
        return {
            name: self.there[start : start + array.nbytes].view(torch.from_numpy(array).dtype).view(array.shape)
            for start, (name, array) in zip(starts, arrays.items(), strict=True)
        }

    def grow(self, num_bytes: int) -> None:
        if num_bytes > len(self.host):
            self.host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self.copied is not None)
            self.there = torch.empty(num_bytes, dtype=torch.uint8, device=self.device)


def to_output(tensors: Mapping[str, Tensor], wanted: Collection[str] | None = None) -> Output:
    """Copies in fp32, which the next step does not write to; of those that are wanted, None: of all."""
    return Output(
        {
            name: tensor.to(device="cpu", dtype=torch.float32, copy=True).numpy()
            for name, tensor in tensors.items()
            if wanted is None or name in wanted
        }
    )


def make_batch(seqlens: list[int], token_id: int = 0) -> Batch:
    """A batch of sequences of these lengths, all of one token, with everything that a model may read but paging."""
    return lay_out(seqlens, np.full(sum(seqlens), token_id, np.int64))


def lay_out(seqlens: list[int], input_ids: npt.NDArray[np.int64]) -> Batch:
    """These tokens as sequences of these lengths, all of type 0, without adapters, none of a prompt, all attended
    to; of each the middle is guessed."""
    cu_seqlens = np.cumsum([0, *seqlens], dtype=np.int32)
    return Batch(
        {
            "input_ids": input_ids,
            "position_ids": np.concatenate([np.arange(seqlen) for seqlen in seqlens]),
            "token_type_ids": np.zeros_like(input_ids),
            "adapter_ids": np.zeros_like(input_ids),
            "num_prompt_tokens": np.zeros(len(seqlens), np.int32),
            "num_keys": np.array(seqlens, np.int32),
            "logit_rows": find_middles(cu_seqlens),
        },
        cu_seqlens=cu_seqlens,
        max_seqlen=max(seqlens),
    )


def check_borders(batch: Batch) -> None:
    """Raises ValueError where `cu_seqlens` is not what `Batch` says. Kernels read and write where it points."""
    borders = batch.cu_seqlens
    if borders.ndim != 1 or len(borders) < 2 or borders[0] != 0:
        raise ValueError(f"cu_seqlens is {borders[:3].tolist()} ...; it must start at 0 and hold each sequence's end")
    seqlens = (borders[1:] - borders[:-1]).tolist()
    if min(seqlens) < 1:
        index = seqlens.index(min(seqlens))
        raise ValueError(
            f"cu_seqlens[{index} : {index + 2}] is {borders[index : index + 2].tolist()}; it must increase"
        )
    if max(seqlens) > batch.max_seqlen:
        raise ValueError(f"max_seqlen is {batch.max_seqlen}, but a sequence has {max(seqlens)} tokens")


def find_shape(batch: Batch, largest: BatchShape) -> BatchShape:
    """The batch's shape. Raises ValueError where it is none, or over the largest that the engine was built for."""
    check_borders(batch)
    shape = BatchShape(batch.num_tokens, batch.num_seqs, batch.max_seqlen, batch.num_logits)
    if not largest.dominates(shape):
        raise ValueError(f"a batch of {tuple(shape)} is over the largest planned, {tuple(largest)}")
    return shape


def run_warmup(run: Callable[[Batch], object], largest: BatchShape, progress: Progress) -> None:
    """Run a short sequence: what is made at the first step is there, whatever the size of the next."""
    progress("warming up", 0, 1)
    run(make_batch([min(WARMUP_TOKENS, largest.num_tokens, largest.max_seqlen)]))
    progress("warming up", 1, 1)
