"""`padless::paged_attention`: group by group, over keys and values gathered from the blocks of one layer."""

from collections.abc import Mapping
from typing import Any

from onnx import TensorProto
from torch.fx import Node

from runtime.backends.onnx.builder import GraphBuilder, Value
from runtime.backends.onnx.by_groups import MASKED, Group, attend_by_groups
from runtime.backends.onnx.lowering import Lowering
from runtime.backends.onnx.rotate import rotate
from runtime.kv_cache.blocks import BLOCK_SIZE
from runtime.kv_cache.layout import PANEL, padded_dim


def lower(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    builder = lowering.builder
    num_heads, head_dim = (int(size) for size in node.meta["val"].shape[1:])
    num_kv_heads, head_size = (int(size) for size in arguments["kv_cache"].meta["val"].shape[3:])
    q = lowering.read(arguments["q"])
    if arguments["rotary"] is not None:
        q = rotate(lowering, q, arguments["position_ids"], arguments["rotary"], num_heads, head_dim)
    q = builder.add("Reshape", q, builder.integers(-1, num_heads * head_dim))
    flat = lowering.read_cache(int(arguments["layer"]))
    cache = builder.add("Reshape", flat, builder.integers(-1, 2, num_kv_heads, head_size))

    def attend(group: Group) -> Value:
        body = group.builder
        seqlens = body.add("Gather", lowering.read(arguments["cache_seqlens"]), group.order)
        seqlens = body.add("Cast", seqlens, to=TensorProto.INT64)
        found, num_keys = find_blocks(lowering, group, arguments, cache, seqlens)
        k, v = gather_keys(body, found, num_kv_heads, head_dim), gather_values(body, found, num_kv_heads, head_dim)
        heads = body.add("Gather", q, group.places)
        heads = body.add("Reshape", heads, group.shape(group.num_seqs, group.width, num_heads, head_dim))
        # Heads that share keys are more queries of one head.
        shared = group.shape(group.num_seqs, num_kv_heads, -1, head_dim)
        heads = body.add("Reshape", body.add("Transpose", heads, perm=[0, 2, 1, 3]), shared)
        scores = body.add("Mul", body.add("MatMul", heads, k), body.number(float(arguments["softmax_scale"])))
        square = group.shape(group.num_seqs, num_heads, group.width, num_keys)
        scores = mask(lowering, group, arguments, body.add("Reshape", scores, square), seqlens, num_keys)
        weights = body.add("Softmax", scores, axis=-1)
        weights = body.add("Reshape", weights, group.shape(group.num_seqs, num_kv_heads, -1, num_keys))
        out = body.add("MatMul", weights, clear_unused(body, v, seqlens, num_keys))
        out = body.add("Reshape", out, group.shape(group.num_seqs, num_heads, group.width, head_dim))
        is_any = body.add("Greater", body.add("Unsqueeze", seqlens, body.integers(1, 2, 3)), body.integer(0))
        out = body.add("Where", is_any, out, body.number(0.0))
        return body.add(
            "Reshape", body.add("Transpose", out, perm=[0, 2, 1, 3]), body.integers(-1, num_heads * head_dim)
        )

    packed = attend_by_groups(lowering, attend)
    return builder.add("Reshape", packed, builder.integers(-1, num_heads, head_dim))


def find_blocks(
    lowering: Lowering, group: Group, arguments: Mapping[str, Any], cache: Value, seqlens: Value
) -> tuple[Value, Value]:
    """The blocks of a group's sequences, as many for each as the longest has, and how many keys these hold."""
    body = group.builder
    longest = body.add("ReduceMax", seqlens, keepdims=0)
    rounded = body.add("Div", body.add("Add", longest, body.integer(BLOCK_SIZE - 1)), body.integer(BLOCK_SIZE))
    num_blocks = body.add("Max", rounded, body.integer(1))
    table = body.add("Gather", lowering.read(arguments["block_table"]), group.order)
    end = body.add("Unsqueeze", num_blocks, body.integers(0))
    blocks = body.add("Slice", table, body.integers(0), end, body.integers(1))
    return body.add("Gather", cache, blocks), body.add("Mul", num_blocks, body.integer(BLOCK_SIZE))


def clear_unused(body: GraphBuilder, values: Value, seqlens: Value, num_keys: Value) -> Value:
    """Behind a sequence's own values lie others', which may be NaN: a weight of 0 would not hide that."""
    places = body.add("Range", body.integer(0), num_keys, body.integer(1))
    is_own = body.add("Less", places, body.add("Unsqueeze", seqlens, body.integers(1)))
    return body.add("Where", body.add("Unsqueeze", is_own, body.integers(1, 3)), values, body.number(0.0))


def gather_keys(body: GraphBuilder, found: Value, num_heads: int, head_dim: int) -> Value:
    """Of blocks [num_seqs, num_blocks, 2, num_heads, head_size], by column: [num_seqs, num_heads, head_dim, num_keys].
    See `runtime.kv_cache.layout`."""
    keys = body.add("Gather", found, body.integer(0), axis=2)
    keys = body.add("Reshape", keys, body.integers(0, 0, num_heads, padded_dim(head_dim), BLOCK_SIZE))
    keys = body.add("Transpose", keys, perm=[0, 2, 3, 1, 4])
    keys = body.add("Reshape", keys, body.integers(0, num_heads, padded_dim(head_dim), -1))
    return cut(body, keys, head_dim, 2)


def gather_values(body: GraphBuilder, found: Value, num_heads: int, head_dim: int) -> Value:
    """[num_seqs, num_heads, num_keys, head_dim]."""
    values = body.add("Gather", found, body.integer(1), axis=2)
    num_panels = padded_dim(head_dim) // PANEL
    values = body.add("Reshape", values, body.integers(0, 0, num_heads, num_panels, BLOCK_SIZE * PANEL))
    values = body.add(
        "Reshape",
        values,
        body.add(
            "Concat",
            body.add("Shape", values, start=0, end=2),
            body.integers(num_heads, num_panels, BLOCK_SIZE, PANEL),
            axis=0,
        ),
    )
    values = body.add("Transpose", values, perm=[0, 2, 1, 4, 3, 5])
    values = body.add("Reshape", values, body.integers(0, num_heads, -1, padded_dim(head_dim)))
    return cut(body, values, head_dim, 3)


def cut(body: GraphBuilder, rows: Value, head_dim: int, axis: int) -> Value:
    if head_dim == padded_dim(head_dim):
        return rows
    return body.add("Slice", rows, body.integers(0), body.integers(head_dim), body.integers(axis))


def mask(
    lowering: Lowering, group: Group, arguments: Mapping[str, Any], scores: Value, seqlens: Value, num_keys: Value
) -> Value:
    """Scores [num_seqs, num_heads, width, num_keys], with what the op adds to them and what it hides."""
    body, softcap = group.builder, float(arguments["softcap"])
    if softcap > 0:
        bounded = body.add("Tanh", body.add("Div", scores, body.number(softcap)))
        scores = body.add("Mul", bounded, body.number(softcap))
    keys = body.add("Range", body.integer(0), num_keys, body.integer(1))
    if not arguments["causal"]:
        last = body.add("Sub", body.add("Unsqueeze", seqlens, body.integers(1)), body.integer(1))
        hidden = body.add("Greater", body.add("Unsqueeze", keys, body.integers(0)), last)
        return hide(body, scores, body.add("Unsqueeze", hidden, body.integers(1, 2)))
    places = body.add("Range", body.integer(0), group.width, body.integer(1))
    first = body.add("Sub", seqlens, group.seqlens)
    own = body.add(
        "Add", body.add("Unsqueeze", first, body.integers(1)), body.add("Unsqueeze", places, body.integers(0))
    )
    behind = body.add("Sub", body.add("Unsqueeze", own, body.integers(2)), keys)
    hidden = body.add("Less", behind, body.integer(0))
    if arguments["window"] >= 0:
        is_far = body.add("Greater", behind, body.integer(int(arguments["window"])))
        hidden = body.add("Or", hidden, is_far)
    if arguments["bias"] is not None:
        reach = int(arguments["bias"].meta["val"].shape[1])
        distance = body.add("Min", body.add("Max", behind, body.integer(0)), body.integer(reach - 1))
        added = body.add("Gather", lowering.read(arguments["bias"]), distance, axis=1)
        scores = body.add("Add", scores, body.add("Transpose", added, perm=[1, 0, 2, 3]))
    return hide(body, scores, body.add("Unsqueeze", hidden, body.integers(1)))


def hide(body: GraphBuilder, scores: Value, hidden: Value) -> Value:
    return body.add("Where", hidden, body.number(MASKED), scores)
