"""Sequences whose keys and values lie scattered in a paged cache, steps that compute parts of them, and looks at them
from outside, as an encoder-decoder's at its sources."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from runtime.backends.backend import Kernel
from runtime.kv_cache.blocks import BLOCK_SIZE
from runtime.kv_cache.layout import KVLayout, KVOrder
from runtime.ops import paged_attention, store_kv
from tests.kernels.kernel_cases import GUARD, borders, random_tensor, run_kernel

MAX_POSITIONS = 2048
NUM_LAYERS, LAYER = 3, 1

Part = tuple[int, int, int]
"""Of one sequence: its number, and its tokens from the first to before the last."""
Look = tuple[int, int]
"""The number of the sequence that is looked at, and how many queries do."""
Kernels = Mapping[object, Kernel]


@dataclass(frozen=True)
class Scene:
    """Whole sequences, of which each step computes a part. `cache` lies between guards, with a layer to each side.
    `form`: the last arguments of attention, by name."""

    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    blocks: list[list[int]]
    buffer: Tensor
    cache: Tensor
    rotary: Tensor | None
    form: dict[str, Any]

    def copy(self) -> "Scene":
        buffer = self.buffer.clone()
        return replace(self, buffer=buffer, cache=buffer[GUARD:-GUARD].view_as(self.cache))

    def fuse(self, parts: Sequence[Part]) -> tuple[Tensor, ...]:
        """q, k and v of a step: slices of one tensor, as fuse_qkv makes them."""
        fused = torch.cat(
            [
                torch.cat([x[seq][first:last].flatten(1) for x in (self.q, self.k, self.v)], 1)
                for seq, first, last in parts
            ]
        )
        sizes = [x[0].shape[1] * x[0].shape[2] for x in (self.q, self.k, self.v)]
        return tuple(part.unflatten(1, (-1, self.q[0].shape[2])) for part in fused.split(sizes, 1))

    def find_positions(self, parts: Sequence[Part]) -> Tensor | None:
        return None if self.rotary is None else torch.cat([torch.arange(first, last) for _, first, last in parts])

    def list_stored(self, parts: Sequence[Part]) -> tuple[Any, ...]:
        """The arguments of `padless::store_kv` for a step."""
        _, k, v = self.fuse(parts)
        slots = [
            self.blocks[seq][i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE
            for seq, first, last in parts
            for i in range(first, last)
        ]
        return k, v, self.cache, LAYER, torch.tensor(slots), self.find_positions(parts), self.rotary

    def list_attended(self, parts: Sequence[Part]) -> tuple[Any, ...]:
        """The arguments of `padless::paged_attention` for a step."""
        num_queries, num_keys = [last - first for _, first, last in parts], [last for _, _, last in parts]
        table = self.make_table([seq for seq, _, _ in parts], num_keys)
        lengths = (borders(num_queries), torch.tensor(num_keys).int(), max(num_queries))
        q = self.fuse(parts)[0]
        return (
            *(q, self.cache, LAYER, table, *lengths, q.shape[2] ** -0.5),
            *(self.find_positions(parts), self.rotary, True),
            *(self.form.get("window", -1), self.form.get("softcap", 0.0), self.form.get("bias")),
        )

    def make_table(self, seqs: Sequence[int], num_keys: Sequence[int]) -> Tensor:
        table = torch.zeros(len(seqs), max(len(self.blocks[seq]) for seq in seqs) + 1, dtype=torch.int32)
        for row, (seq, length) in enumerate(zip(seqs, num_keys, strict=True)):
            used = -(-length // BLOCK_SIZE)
            table[row, :used] = torch.tensor(self.blocks[seq][:used])
        return table

    def step(self, kernels: Kernels, parts: Sequence[Part], num_threads: int = 1) -> list[Tensor]:
        """What attention gives for each part after it is stored. No guards and no other layers may change."""
        outside = self.outside()
        stored, attended = self.list_stored(parts), self.list_attended(parts)
        with threads(num_threads):
            run_kernel(kernels[store_kv.OP], (0,), stored[0].dtype, *stored)
            out = run_kernel(kernels[paged_attention.OP], tuple(attended[0].shape), attended[0].dtype, *attended)
        for before, after in zip(outside, self.outside(), strict=True):
            assert torch.equal(before.view(torch.uint8), after.view(torch.uint8)), "wrote beside the layer"
        return list(out.split([last - first for _, first, last in parts]))

    def store(self, kernels: Kernels) -> None:
        """All sequences, whole."""
        parts = [(seq, 0, len(k)) for seq, k in enumerate(self.k) if len(k)]
        run_kernel(kernels[store_kv.OP], (0,), self.k[0].dtype, *self.list_stored(parts))

    def look(self, kernels: Kernels, q: Tensor, looks: Sequence[Look], num_threads: int = 1) -> Tensor:
        """What attention gives where each query sees all keys of a sequence that is stored already. Queries of several
        looks lie one behind the other in `q`."""
        seqs, num_queries = [seq for seq, _ in looks], [count for _, count in looks]
        num_keys = [len(self.k[seq]) for seq in seqs]
        lengths = (borders(num_queries), torch.tensor(num_keys).int(), max(num_queries))
        scale = q.shape[2] ** -0.5
        args = (q, self.cache, LAYER, self.make_table(seqs, num_keys), *lengths, scale, None, None, False)
        with threads(num_threads):
            return run_kernel(kernels[paged_attention.OP], tuple(q.shape), q.dtype, *args)

    def outside(self) -> list[Tensor]:
        others = [self.cache[layer] for layer in range(NUM_LAYERS) if layer != LAYER]
        return [self.buffer[:GUARD].clone(), self.buffer[-GUARD:].clone(), *(other.clone() for other in others)]


@contextmanager
def threads(number: int) -> Iterator[None]:
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(1)


def as_kernel(op: Any) -> Kernel:
    """The reference of an op."""
    return lambda *args, out: out.copy_(op(*args))


REFERENCE: Kernels = {op: as_kernel(op) for op in (store_kv.OP, paged_attention.OP)}


def make_scene(
    seqlens: Sequence[int],
    heads: tuple[int, int] = (6, 2),
    head_dim: int = 64,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype = torch.float32,
    rotary_dim: int = 0,
    stale: float = 0.0,
    reach: int = 0,
    order: KVOrder = "panels",
    **form: Any,
) -> Scene:
    """`heads`: of queries, of keys. `stale`: what lies where nothing was written; NaN also for the scales of int8.
    `reach`: of a bias by distance, 0 for none."""
    num_heads, num_kv_heads = heads
    blocks_of = [-(-seqlen // BLOCK_SIZE) for seqlen in seqlens]
    blocks = torch.randperm(sum(blocks_of) + 3, generator=torch.Generator().manual_seed(1)).tolist()
    starts = [sum(blocks_of[:index]) for index in range(len(seqlens))]
    layout = KVLayout(NUM_LAYERS, num_kv_heads, head_dim, cache_dtype, order)
    shape = layout.allocate(len(blocks), torch.device("cpu")).shape
    size = shape.numel() + 2 * GUARD
    # Bytes of -1 are numbers of -1, with scales of NaN behind them.
    fill = (0 if stale == 0 else -1) if cache_dtype == torch.int8 else stale
    buffer = torch.full((size,), fill, dtype=cache_dtype)
    return Scene(
        q=[random_tensor(seqlen, num_heads, head_dim, dtype=dtype, seed=1 + i) for i, seqlen in enumerate(seqlens)],
        k=[random_tensor(seqlen, num_kv_heads, head_dim, dtype=dtype, seed=2 + i) for i, seqlen in enumerate(seqlens)],
        v=[random_tensor(seqlen, num_kv_heads, head_dim, dtype=dtype, seed=3 + i) for i, seqlen in enumerate(seqlens)],
        blocks=[blocks[start : start + count] for start, count in zip(starts, blocks_of, strict=True)],
        buffer=buffer,
        cache=buffer[GUARD:-GUARD].view(shape),
        rotary=make_rotary(rotary_dim) if rotary_dim else None,
        form=form | ({"bias": random_tensor(num_heads, reach)} if reach else {}),
    )


def make_rotary(rotary_dim: int) -> Tensor:
    frequencies = 10_000.0 ** (-torch.arange(0, rotary_dim, 2) / rotary_dim)
    angles = torch.arange(MAX_POSITIONS)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)
