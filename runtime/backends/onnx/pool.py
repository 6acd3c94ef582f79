"""`padless::pool`: rows of tokens gathered, or reduced group by group."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto
from torch.fx import Node

from runtime.backends.onnx.builder import GraphBuilder, Value
from runtime.backends.onnx.by_groups import Group, loop_over_groups
from runtime.backends.onnx.lowering import Lowering

LEAST_NORM = 1e-12
"""As `torch.nn.functional.normalize` has it."""


def lower(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    builder, mode = lowering.builder, arguments["mode"]
    rows, borders = lowering.read(arguments["hidden_states"]), lowering.read(arguments["cu_seqlens"])
    starts, ends = find_borders(builder, borders)
    skipped = lowering.read(arguments["num_prompt_tokens"])
    if skipped:
        starts = builder.add("Add", starts, builder.add("Cast", skipped, to=TensorProto.INT64))
    if mode in ("cls", "last"):
        last = builder.add("Sub", ends, builder.integer(1))
        if mode == "cls":
            has_more = builder.add("Less", starts, ends)
            first = find_borders(builder, borders)[0]
            chosen = builder.add("Where", has_more, starts, first)
        result = builder.add("Gather", rows, chosen if mode == "cls" else last)
    else:
        result = reduce(lowering, node, rows, starts, ends, mode, skipped=skipped)
    return normalize(builder, result) if arguments["normalize"] else result


def find_borders(builder: GraphBuilder, borders: Value) -> tuple[Value, Value]:
    """Where each sequence starts and ends, int64 [num_seqs]."""
    wide = builder.add("Cast", borders, to=TensorProto.INT64)
    zero, one = builder.integers(0), builder.integers(1)
    starts = builder.add("Slice", wide, zero, builder.integers(-1), zero)
    return starts, builder.add("Slice", wide, one, builder.integers(np.iinfo(np.int64).max), zero)


def reduce(
    lowering: Lowering, node: Node, rows: Value, starts: Value, ends: Value, mode: str, *, skipped: Value
) -> Value:
    """Mean or largest of each sequence's tokens, those of its prompt left out; 0 of none.

    Group by group: `ScatterND` with a reduction loses updates where several threads meet in one row.
    """
    builder, width = lowering.builder, int(node.meta["val"].shape[1])

    def compute(group: Group) -> Value:
        body = group.builder
        padded = body.add("Gather", rows, group.places)
        padded = body.add("Reshape", padded, group.shape(group.num_seqs, group.width, width))
        places = body.add("Range", body.integer(0), group.width, body.integer(1))
        is_seen = body.add("Less", places, body.add("Unsqueeze", group.seqlens, body.integers(1)))
        if skipped:
            first = body.add("Cast", body.add("Gather", skipped, group.order), to=TensorProto.INT64)
            behind = body.add("GreaterOrEqual", places, body.add("Unsqueeze", first, body.integers(1)))
            is_seen = body.add("And", is_seen, behind)
        rest = body.number(0.0 if mode == "mean" else float("-inf"))
        padded = body.add("Where", body.add("Unsqueeze", is_seen, body.integers(2)), padded, rest)
        return body.add("ReduceSum" if mode == "mean" else "ReduceMax", padded, body.integers(1), keepdims=0)

    by_group = loop_over_groups(lowering, compute)
    order = builder.add("Unsqueeze", lowering.read_groups("group_order"), builder.integers(1))
    result = builder.add("ScatterND", builder.add("Mul", by_group, builder.number(0.0)), order, by_group)
    counts = builder.add("Unsqueeze", builder.add("Sub", ends, starts), builder.integers(1))
    if mode == "mean":
        least = builder.add("Max", counts, builder.integer(1))
        return builder.add("Div", result, builder.add("Cast", least, to=TensorProto.FLOAT))
    has_any = builder.add("Greater", counts, builder.integer(0))
    return builder.add("Where", has_any, result, builder.number(0.0))


def normalize(builder: GraphBuilder, rows: Value) -> Value:
    length = builder.add("ReduceL2", rows, builder.integers(1), keepdims=1)
    return builder.add("Div", rows, builder.add("Max", length, builder.number(LEAST_NORM)))
