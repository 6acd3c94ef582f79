"""`padless::store_kv`: scattered into the cache of one layer, which a session gives back where it got it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from runtime.backends.onnx.builder import Value
from runtime.backends.onnx.lowering import Lowering
from runtime.backends.onnx.rotate import rotate
from runtime.kv_cache.blocks import BLOCK_SIZE
from runtime.kv_cache.layout import PANEL, column_order


def lower(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    builder, layer = lowering.builder, int(arguments["layer"])
    num_heads, head_dim = (int(size) for size in arguments["k"].meta["val"].shape[1:])
    k, v = lowering.read(arguments["k"]), lowering.read(arguments["v"])
    if arguments["rotary"] is not None:
        k = rotate(lowering, k, arguments["position_ids"], arguments["rotary"], num_heads, head_dim)
    rows = builder.add("Concat", *(builder.add("Unsqueeze", each, builder.integers(1)) for each in (k, v)), axis=1)
    places = find_places(lowering, arguments["slot_mapping"], arguments["kv_cache"], num_heads, head_dim)
    lowering.write_cache(layer, places, rows)
    return builder.constant([], np.float32)


def find_places(lowering: Lowering, slot_mapping: Node, cache: Node, num_heads: int, head_dim: int) -> Value:
    """Where each number of the tokens' keys and values goes, [num_tokens, 2, num_heads, head_dim, 1]: the same in all
    layers."""
    builder, head_size = lowering.builder, int(cache.meta["val"].shape[-1])

    def find() -> Value:
        slots, block_size = lowering.read(slot_mapping), builder.integer(BLOCK_SIZE)
        blocks, offsets = builder.add("Div", slots, block_size), builder.add("Mod", slots, block_size)
        columns = torch.stack([column_order(head_dim, each, torch.device("cpu")) for each in (False, True)])
        kinds, heads = torch.arange(2)[:, None, None], torch.arange(num_heads)[None, :, None]
        within = (kinds * num_heads + heads) * head_size + columns[:, None, :]
        steps = builder.constant([[[1]], [[PANEL]]], np.int64)
        places = builder.add(
            "Add", builder.add("Mul", wide(lowering, offsets), steps), builder.weight("columns", within)
        )
        first = builder.add("Mul", blocks, builder.integer(2 * num_heads * head_size))
        return builder.add("Unsqueeze", builder.add("Add", places, wide(lowering, first)), builder.integers(4))

    return lowering.share((slot_mapping, num_heads, head_dim), find)


def wide(lowering: Lowering, numbers: Value) -> Value:
    return lowering.builder.add("Unsqueeze", numbers, lowering.builder.integers(1, 2, 3))
