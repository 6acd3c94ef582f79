"""`padless::store_kv`: write the keys and values of new tokens to their slots in the cache.

    k and v [num_tokens, num_kv_heads, head_dim], kv_cache as in `runtime.kv_cache.layout` -> [0], like k; the cache's
        `layer` is changed in place

`slot_mapping` [num_tokens]: block * BLOCK_SIZE + place in the block. With `rotary`, fp32 [max_positions, rotary_dim],
the heads of k are turned first, by the rows of `position_ids` [num_tokens], as `padless::rotate` does.

The op is there for what it writes; its result is empty because every op gives a tensor. Graphs keep ops that change an
argument, read or not, and in their order: `padless::paged_attention` stands behind it and reads what it wrote.
"""

from torch import Tensor

from runtime.kv_cache.layout import store_rows
from runtime.ops.rotate import rotate
from runtime.ops.spec import define_op


def store_kv_shape(k: Tensor) -> Tensor:
    return k.new_empty(0)


def store_kv(
    k: Tensor,
    v: Tensor,
    kv_cache: Tensor,
    layer: int,
    slot_mapping: Tensor,
    position_ids: Tensor | None = None,
    rotary: Tensor | None = None,
) -> Tensor:
    """The reference."""
    if rotary is not None:
        assert position_ids is not None, "A rotation needs positions. This is a bug."
        k = rotate(k, position_ids, rotary)
    store_rows(kv_cache[layer, :, 0], slot_mapping, k, is_value=False)
    store_rows(kv_cache[layer, :, 1], slot_mapping, v, is_value=True)
    return store_kv_shape(k)


SPEC = define_op(store_kv, store_kv_shape, mutates=["kv_cache"])
OP = SPEC.target
