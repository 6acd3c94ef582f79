"""Keys and values into a paged cache by torch's own operations."""

from torch import Tensor

from runtime.ops.store_kv import store_kv as reference


def store_kv(
    k: Tensor,
    v: Tensor,
    kv_cache: Tensor,
    layer: int,
    slot_mapping: Tensor,
    position_ids: Tensor | None = None,
    rotary: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    """`out` has no elements."""
    reference(k, v, kv_cache, layer, slot_mapping, position_ids, rotary)
