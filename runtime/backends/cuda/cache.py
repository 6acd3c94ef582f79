"""What kernels see of one layer of a KV cache by rows (`runtime.kv_cache.layout`)."""

from typing import NamedTuple

import torch
from torch import Tensor

from runtime.kv_cache.layout import view_scales


class CacheViews(NamedTuple):
    """`keys`, `values`: [num_blocks, num_kv_heads, num_rows, head_dim], a token's row each, and others with the scales
    behind them. The scales of int8: fp32 [num_blocks, num_kv_heads, BLOCK_SIZE].
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None
    value_scales: Tensor | None

    @property
    def strides(self) -> tuple[int, ...]:
        """From block to block and from head to head, of numbers and of scales."""
        scales = (0, 0) if self.key_scales is None else self.key_scales.stride()[:2]
        return (*self.keys.stride()[:2], *scales)


def view_layer(kv_cache: Tensor, layer: int) -> CacheViews:
    """Raises ValueError where the cache does not lie by rows."""
    if kv_cache.dim() != 6:
        raise ValueError(
            "the KV cache lies in panels, which are for CPUs: CUDA's kernels take one by rows. This is a bug."
        )
    keys, values = kv_cache[layer].unbind(1)
    if kv_cache.dtype != torch.int8:
        return CacheViews(keys, values, None, None)
    return CacheViews(keys, values, *(view_scales(numbers, keys.shape[3]) for numbers in (keys, values)))
