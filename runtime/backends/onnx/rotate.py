"""`padless::rotate`: `RotaryEmbedding`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch.fx import Node

from runtime.backends.onnx.builder import Value
from runtime.backends.onnx.lowering import Lowering


def lower(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    num_heads, head_dim = (int(size) for size in node.meta["val"].shape[1:])
    x = lowering.read(arguments["x"])
    return rotate(lowering, x, arguments["position_ids"], arguments["table"], num_heads, head_dim)


def rotate(lowering: Lowering, x: Value, position_ids: Node, table: Node, num_heads: int, head_dim: int) -> Value:
    """Each token is a sequence of its own: the operator wants no sequence longer than its table."""
    builder, angles = lowering.builder, lowering.tensor(table)
    keys = [(str(table.target), half) for half in range(2)]
    halves = [lowering.share(key, partial(split_angles, lowering, table, key[1])) for key in keys]
    rows = builder.add("Reshape", x, builder.integers(-1, 1, num_heads * head_dim))
    places = builder.add("Unsqueeze", lowering.read(position_ids), builder.integers(1))
    extent = {} if angles.shape[1] == head_dim else {"rotary_embedding_dim": int(angles.shape[1])}
    turned = builder.contrib("RotaryEmbedding", rows, places, *halves, num_heads=num_heads, **extent)
    return builder.add("Reshape", turned, builder.integers(-1, num_heads, head_dim))


def split_angles(lowering: Lowering, table: Node, half: int) -> Value:
    """Cosines, or sines."""
    angles = lowering.tensor(table).chunk(2, dim=1)[half].contiguous()
    return lowering.builder.weight(f"{table.name}_{'sin' if half else 'cos'}", angles)
