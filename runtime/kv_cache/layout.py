"""How keys and values lie in a block of the cache, and what that takes. A backend says which order its kernels read.

    in panels  [num_layers, num_blocks, 2, num_kv_heads, head_size]
    by rows    [num_layers, num_blocks, 2, num_kv_heads, num_rows, head_dim]

the 2 being keys and values. In one head of one block in panels the keys lie by column, [padded_dim, BLOCK_SIZE], and
the values in panels of 16 columns, [padded_dim / 16, BLOCK_SIZE, 16]: the two layouts in which a GEMM's innermost loop
reads them on CPUs, so that attention works on the blocks in place. `padded_dim` is head_dim rounded up to 16. By rows
there is a row for each token, which GPUs load whole: a head's block is one piece of memory.

An int8 cache has each token's scale, fp32 [BLOCK_SIZE], behind the numbers of its head: value = number * scale. By rows
they take as many rows more as they fill.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from runtime.kv_cache.blocks import BLOCK_SIZE

KVOrder = Literal["panels", "rows"]
PANEL = 16
KV_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
"""By the names that configurations have for them."""


@dataclass(frozen=True, slots=True)
class KVLayout:
    """What a model needs to remember of each token. `dtype`: float32, bfloat16, float16 or int8."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32
    order: KVOrder = "panels"

    @property
    def dtype_name(self) -> str:
        return next(name for name, dtype in KV_DTYPES.items() if dtype == self.dtype)

    @property
    def block_bytes(self) -> int:
        """Of one block, in all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_size * self.dtype.itemsize

    @property
    def head_size(self) -> int:
        """Elements of one head's keys, or values, in a block."""
        return math.prod(self.head_shape)

    @property
    def head_shape(self) -> tuple[int, ...]:
        """In which they lie."""
        if self.order == "rows":
            return count_rows(self.head_dim, self.dtype), self.head_dim
        return (panels_size(self.head_dim, self.dtype),)

    def allocate(self, num_blocks: int, device: torch.device) -> Tensor:
        """Zeros: what was never written must at least be finite, because it is multiplied by weights of 0."""
        shape = (self.num_layers, num_blocks, 2, self.num_kv_heads, *self.head_shape)
        return torch.zeros(shape, dtype=self.dtype, device=device)


def padded_dim(head_dim: int) -> int:
    return -(-head_dim // PANEL) * PANEL


def panels_size(head_dim: int, dtype: torch.dtype) -> int:
    scales = BLOCK_SIZE * 4 if dtype == torch.int8 else 0
    return BLOCK_SIZE * padded_dim(head_dim) + scales


def count_rows(head_dim: int, dtype: torch.dtype) -> int:
    """Rows of one head in a block; with scales so many that every head begins at a multiple of 16 bytes."""
    if dtype != torch.int8:
        return BLOCK_SIZE
    step = 16 // math.gcd(16, head_dim)
    return BLOCK_SIZE + -(-BLOCK_SIZE * 4 // (head_dim * step)) * step


def store_rows(heads: Tensor, places: Tensor, rows: Tensor, *, is_value: bool) -> None:
    """Write tokens into the cache of one layer and kind.

    `heads`: [num_blocks, num_kv_heads, *head_shape], a view of the cache; `places`: slots [num_tokens]; `rows`:
    [num_tokens, num_kv_heads, head_dim].
    """
    blocks, offsets = places // BLOCK_SIZE, places % BLOCK_SIZE
    head_dim = rows.shape[2]
    if heads.dtype == torch.int8:
        scales = (rows.float().abs().amax(2) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        rows = (rows.float() / scales[:, :, None]).round().clamp(-127, 127)
        view_scales(heads, head_dim)[blocks, :, offsets] = scales
    if heads.dim() == 4:
        heads[blocks, :, offsets] = rows.to(heads.dtype)
        return
    columns = column_order(head_dim, is_value, heads.device)
    # One element of a row goes to `columns[element] + offset * step`.
    step = PANEL if is_value else 1
    where = columns[None, :] + offsets[:, None] * step  # [num_tokens, head_dim]
    index = torch.arange(heads.shape[1], device=heads.device)
    heads[blocks[:, None, None], index[None, :, None], where[:, None, :]] = rows.to(heads.dtype)


def load_rows(heads: Tensor, block_ids: Tensor, num_tokens: int, head_dim: int, *, is_value: bool) -> Tensor:
    """The first `num_tokens` tokens of a sequence's blocks: fp32 [num_tokens, num_kv_heads, head_dim]."""
    return read_blocks(heads[block_ids], head_dim, is_value=is_value)[:num_tokens]


def read_blocks(found: Tensor, head_dim: int, *, is_value: bool) -> Tensor:
    """All tokens of blocks [blocks, num_kv_heads, *head_shape]: fp32 [blocks * BLOCK_SIZE, num_kv_heads, head_dim]."""
    if found.dim() == 4:
        numbers = found[:, :, :BLOCK_SIZE].float().transpose(1, 2)
    else:
        numbers = found[:, :, : BLOCK_SIZE * padded_dim(head_dim)].float()
        if is_value:
            numbers = numbers.unflatten(2, (-1, BLOCK_SIZE, PANEL)).permute(0, 3, 1, 2, 4).flatten(3)
        else:
            numbers = numbers.unflatten(2, (-1, BLOCK_SIZE)).permute(0, 3, 1, 2)
    if found.dtype == torch.int8:
        numbers = numbers * view_scales(found, head_dim).transpose(1, 2)[..., None]
    return numbers.flatten(0, 1)[:, :, :head_dim]


def view_scales(heads: Tensor, head_dim: int) -> Tensor:
    """Of int8 numbers: fp32 [num_blocks, num_kv_heads, BLOCK_SIZE]."""
    flat = heads.flatten(2)
    width = BLOCK_SIZE * (head_dim if heads.dim() == 4 else padded_dim(head_dim))
    return flat[:, :, width : width + 4 * BLOCK_SIZE].view(torch.float32)


def column_order(head_dim: int, is_value: bool, device: torch.device) -> Tensor:
    """Where each element of a row lies in its head in panels, for the first token of a block."""
    element = torch.arange(head_dim, device=device)
    if is_value:
        return element // PANEL * (BLOCK_SIZE * PANEL) + element % PANEL
    return element * BLOCK_SIZE
