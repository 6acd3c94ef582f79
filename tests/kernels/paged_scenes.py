"""Sequences whose keys and values lie scattered in a paged cache, and steps that compute parts of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from runtime.backends.backend import Kernel
from runtime.kv_cache.blocks import BLOCK_SIZE
from runtime.kv_cache.layout import KVLayout
from runtime.ops.paged_attention import OP
from tests.kernels.kernel_cases import GUARD, random_tensor, run_kernel

MAX_POSITIONS = 2048
NUM_LAYERS, LAYER = 3, 1

Part = tuple[int, int, int]
"""Of one sequence: its number, and its tokens from the first to before the last."""


@dataclass(frozen=True)
class Scene:
    """Whole sequences, of which each step computes a part. `cache` lies between guards, with a layer to each side."""

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

    def batch(self, parts: Sequence[Part]) -> tuple[Any, ...]:
        """The op's arguments for a step. q, k and v are slices of one fused tensor, as fuse_qkv makes them."""
        fused = torch.cat(
            [
                torch.cat([x[seq][first:last].flatten(1) for x in (self.q, self.k, self.v)], 1)
                for seq, first, last in parts
            ]
        )
        sizes = [x[0].shape[1] * x[0].shape[2] for x in (self.q, self.k, self.v)]
        q, k, v = (part.unflatten(1, (-1, self.q[0].shape[2])) for part in fused.split(sizes, 1))
        slots = [
            self.blocks[seq][i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE
            for seq, first, last in parts
            for i in range(first, last)
        ]
        table = torch.zeros(len(parts), max(len(self.blocks[seq]) for seq, _, _ in parts) + 1, dtype=torch.int32)
        for row, (seq, _, last) in enumerate(parts):
            used = -(-last // BLOCK_SIZE)
            table[row, :used] = torch.tensor(self.blocks[seq][:used])
        lengths = [last - first for _, first, last in parts]
        positions = torch.cat([torch.arange(first, last) for _, first, last in parts])
        return (
            *(q, k, v, self.cache, LAYER, torch.tensor(slots), table),
            *(torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), torch.tensor([p[2] for p in parts]).int()),
            *(max(lengths), q.shape[2] ** -0.5, None if self.rotary is None else positions, self.rotary),
            *(self.form.get("window", -1), self.form.get("softcap", 0.0)),
        )

    def step(self, kernel: Kernel, parts: Sequence[Part], num_threads: int = 1) -> list[Tensor]:
        """What the kernel computes for each part. It changes the cache, but no guards and no other layers."""
        outside = self.outside()
        args = self.batch(parts)
        torch.set_num_threads(num_threads)
        try:
            out = run_kernel(kernel, tuple(args[0].shape), args[0].dtype, *args)
        finally:
            torch.set_num_threads(1)
        for before, after in zip(outside, self.outside(), strict=True):
            assert torch.equal(before.view(torch.uint8), after.view(torch.uint8)), "wrote beside the layer"
        return list(out.split([last - first for _, first, last in parts]))

    def outside(self) -> list[Tensor]:
        others = [self.cache[layer] for layer in range(NUM_LAYERS) if layer != LAYER]
        return [self.buffer[:GUARD].clone(), self.buffer[-GUARD:].clone(), *(other.clone() for other in others)]


def reference(*args: Any, out: Tensor) -> None:
    out.copy_(OP(*args))


def make_scene(
    seqlens: Sequence[int],
    heads: tuple[int, int] = (6, 2),
    head_dim: int = 64,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype = torch.float32,
    rotary_dim: int = 0,
    stale: float = 0.0,
    **form: Any,
) -> Scene:
    """`heads`: of queries, of keys. `stale`: what lies where nothing was written; NaN also for the scales of int8."""
    num_heads, num_kv_heads = heads
    blocks_of = [-(-seqlen // BLOCK_SIZE) for seqlen in seqlens]
    order = torch.randperm(sum(blocks_of) + 3, generator=torch.Generator().manual_seed(1)).tolist()
    starts = [sum(blocks_of[:index]) for index in range(len(seqlens))]
    layout = KVLayout(NUM_LAYERS, num_kv_heads, head_dim, cache_dtype)
    shape = layout.allocate(len(order), torch.device("cpu")).shape
    size = shape.numel() + 2 * GUARD
    # Bytes of -1 are numbers of -1, with scales of NaN behind them.
    fill = (0 if stale == 0 else -1) if cache_dtype == torch.int8 else stale
    buffer = torch.full((size,), fill, dtype=cache_dtype)
    return Scene(
        q=[random_tensor(seqlen, num_heads, head_dim, dtype=dtype, seed=1 + i) for i, seqlen in enumerate(seqlens)],
        k=[random_tensor(seqlen, num_kv_heads, head_dim, dtype=dtype, seed=2 + i) for i, seqlen in enumerate(seqlens)],
        v=[random_tensor(seqlen, num_kv_heads, head_dim, dtype=dtype, seed=3 + i) for i, seqlen in enumerate(seqlens)],
        blocks=[order[start : start + count] for start, count in zip(starts, blocks_of, strict=True)],
        buffer=buffer,
        cache=buffer[GUARD:-GUARD].view(shape),
        rotary=make_rotary(rotary_dim) if rotary_dim else None,
        form=form,
    )


def make_rotary(rotary_dim: int) -> Tensor:
    frequencies = 10_000.0 ** (-torch.arange(0, rotary_dim, 2) / rotary_dim)
    angles = torch.arange(MAX_POSITIONS)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)
