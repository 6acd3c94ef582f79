"""`padless::varlen_attention` without a packed kernel: group by group, padded around `MultiHeadAttention`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, TensorProto, helper
from torch.fx import Node

from runtime.backends.onnx.builder import ABSENT, GraphBuilder, Value
from runtime.backends.onnx.by_groups import MASKED, Group, attend_by_groups
from runtime.backends.onnx.lowering import Lowering


def lower(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    assert arguments["cu_seqlens_q"] is arguments["cu_seqlens_k"], "No model looks at others' tokens. This is a bug."
    q_node, k_node = arguments["q"], arguments["k"]
    num_heads, head_dim = (int(size) for size in q_node.meta["val"].shape[1:])
    num_kv_heads, value_dim = int(k_node.meta["val"].shape[1]), int(arguments["v"].meta["val"].shape[2])
    q, k, v = (flatten_heads(lowering, arguments[name]) for name in ("q", "k", "v"))

    def attend(group: Group) -> Value:
        body = group.builder
        rows = [body.add("Gather", each, group.places) for each in (q, k, v)]
        if num_kv_heads != num_heads:
            sizes = zip(rows[1:], (head_dim, value_dim), strict=True)
            rows[1:] = [repeat_heads(body, each, num_kv_heads, num_heads, size) for each, size in sizes]
        widths = zip(rows, (head_dim, head_dim, value_dim), strict=True)
        padded = [
            body.add("Reshape", each, group.shape(group.num_seqs, group.width, num_heads * size))
            for each, size in widths
        ]
        bias = build_bias(lowering, group, arguments, padded[0], padded[1])
        seen = count_seen(lowering, group, arguments["num_keys"])
        options = {"num_heads": num_heads, "scale": float(arguments["softmax_scale"])}
        options |= {"unidirectional": int(arguments["causal"]), "mask_filter_value": MASKED}
        out = attend_padded(group, padded, seen, bias, options)
        if arguments["num_keys"] is not None:
            out = clear_unseeing(group, out, seen, arguments["window"])
        return body.add("Reshape", out, body.integers(-1, num_heads * value_dim))

    packed = attend_by_groups(lowering, attend)
    return lowering.builder.add("Reshape", packed, lowering.builder.integers(-1, num_heads, value_dim))


def attend_padded(
    group: Group, padded: Sequence[Value], seen: Value, bias: Value, options: Mapping[str, float]
) -> Value:
    """A group whose sequences see all of its keys goes without a mask: ONNX Runtime then never has all scores in memory
    (FlashAttention: Dao et al., 2022), and takes a fifth less time or less yet."""
    body = group.builder
    mask = body.add("Cast", seen, to=TensorProto.INT32)
    if bias:
        return body.contrib("MultiHeadAttention", *padded, ABSENT, mask, bias, **options)

    def branch(*inputs: Value) -> GraphProto:
        inner = body.body()
        out = inner.contrib("MultiHeadAttention", *padded, *inputs, **options)
        inner.outputs.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, None))
        return inner.build(inner.name("branch"))

    least = body.add("Cast", body.add("ReduceMin", seen, keepdims=0), to=TensorProto.INT64)
    return body.add("If", body.add("Less", least, group.width), then_branch=branch(ABSENT, mask), else_branch=branch())


def flatten_heads(lowering: Lowering, node: Node) -> Value:
    width = int(np.prod([int(size) for size in node.meta["val"].shape[1:]]))
    return lowering.builder.add("Reshape", lowering.read(node), lowering.builder.integers(-1, width))


def repeat_heads(builder: GraphBuilder, rows: Value, num_kv_heads: int, num_heads: int, head_dim: int) -> Value:
    """Each head as often as heads of queries look at it."""
    heads = builder.add("Reshape", rows, builder.integers(-1, num_kv_heads, head_dim))
    index = builder.constant(np.repeat(np.arange(num_kv_heads), num_heads // num_kv_heads), np.int64)
    return builder.add("Gather", heads, index, axis=1)


def count_seen(lowering: Lowering, group: Group, num_keys: Node | None) -> Value:
    """How many keys of each sequence are seen."""
    if num_keys is None:
        return group.seqlens
    return group.builder.add("Gather", lowering.read(num_keys), group.order)


def clear_unseeing(group: Group, out: Value, seen: Value, window: int) -> Value:
    """0 for queries that see no key, which masks alone would give a mean of all."""
    body, zero = group.builder, group.builder.integer(0)
    keys = body.add("Unsqueeze", body.add("Cast", seen, to=TensorProto.INT64), body.integers(1))
    places = body.add("Range", zero, group.width, body.integer(1))
    first = body.add("Sub", places, body.integer(window)) if window >= 0 else body.add("Mul", places, zero)
    sees = body.add("And", body.add("Less", first, keys), body.add("Greater", keys, zero))
    return body.add("Where", body.add("Unsqueeze", sees, body.integers(2)), out, body.number(0.0))


def build_bias(lowering: Lowering, group: Group, arguments: Mapping[str, Any], q: Value, k: Value) -> Value:
    """What is added to a group's scores: [num_seqs or 1, num_heads or 1, width, width]; nothing where nothing is."""
    body, window, bias = group.builder, arguments["window"], arguments["bias"]
    if window < 0 and bias is None and arguments["buckets"] is None:
        return ABSENT
    distances = find_distances(body, group.width)
    parts = []
    if window >= 0:
        is_far = body.add("Greater", body.add("Abs", distances), body.integer(window))
        hidden = body.add("Where", is_far, body.number(MASKED), body.number(0.0))
        parts.append(body.add("Reshape", hidden, group.shape(1, 1, group.width, group.width)))
    if bias is not None:
        rows = body.add("Add", distances, body.integer(int(bias.meta["val"].shape[1] + 1) // 2 - 1))
        by_head = body.add("Gather", lowering.read(bias), rows, axis=1)
        parts.append(body.add("Unsqueeze", by_head, body.integers(0)))
    if arguments["buckets"] is not None:
        parts.append(score_positions(lowering, group, arguments, q, k, distances))
    total = parts[0]
    for each in parts[1:]:
        total = body.add("Add", total, each)
    return total


def find_distances(builder: GraphBuilder, width: Value) -> Value:
    """Key position less query position, int64 [width, width]."""
    places = builder.add("Range", builder.integer(0), width, builder.integer(1))
    keys, queries = (builder.add("Unsqueeze", places, builder.integers(axis)) for axis in (0, 1))
    return builder.add("Sub", keys, queries)


def score_positions(
    lowering: Lowering, group: Group, arguments: Mapping[str, Any], q: Value, k: Value, distances: Value
) -> Value:
    """Queries and keys by their distances (`position_k`, `position_q`), scaled: [num_seqs, num_heads, width, width]."""
    body, buckets = group.builder, arguments["buckets"]
    num_heads, head_dim = (int(size) for size in arguments["q"].meta["val"].shape[1:])
    reach = (int(buckets.meta["val"].shape[0]) + 1) // 2
    rows = body.add("Gather", lowering.read(buckets), body.add("Add", distances, body.integer(reach - 1)))
    rows = body.add("Cast", rows, to=TensorProto.INT64)
    index = body.add("Expand", rows, group.shape(group.num_seqs, num_heads, group.width, group.width))
    parts = []
    for rows_of, table, axis in ((q, arguments["position_k"], 3), (k, arguments["position_q"], 2)):
        if table is None:
            continue
        heads = body.add("Reshape", rows_of, group.shape(group.num_seqs, group.width, num_heads, head_dim))
        heads = body.add("Transpose", heads, perm=[0, 2, 1, 3])
        by_head = body.add("Transpose", lowering.read(table), perm=[1, 2, 0])
        by_bucket = body.add("MatMul", heads, by_head)
        if axis == 2:
            by_bucket = body.add("Transpose", by_bucket, perm=[0, 1, 3, 2])
        parts.append(body.add("GatherElements", by_bucket, index, axis=axis))
    total = parts[0] if len(parts) == 1 else body.add("Add", *parts)
    return body.add("Mul", total, body.number(float(arguments["softmax_scale"])))
