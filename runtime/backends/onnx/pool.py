"""`padless::pool`: rows of tokens gathered or summed by sequence."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto
from torch.fx import Node

from runtime.backends.onnx.builder import GraphBuilder, Value
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
        result = reduce(lowering, node, rows, starts, ends, mode, has_prompts=bool(skipped))
    return normalize(builder, result) if arguments["normalize"] else result


def find_borders(builder: GraphBuilder, borders: Value) -> tuple[Value, Value]:
    """Where each sequence starts and ends, int64 [num_seqs]."""
    wide = builder.add("Cast", borders, to=TensorProto.INT64)
    zero, one = builder.integers(0), builder.integers(1)
    starts = builder.add("Slice", wide, zero, builder.integers(-1), zero)
    return starts, builder.add("Slice", wide, one, builder.integers(np.iinfo(np.int64).max), zero)


def reduce(
    lowering: Lowering, node: Node, rows: Value, starts: Value, ends: Value, mode: str, *, has_prompts: bool
) -> Value:
    """Mean or largest of each sequence's tokens, those of its prompt left out; 0 of none."""
    builder, width = lowering.builder, int(node.meta["val"].shape[1])
    owners = lowering.read_groups("seq_ids")
    if has_prompts:
        places = builder.add("Range", builder.integer(0), lowering.measure("num_tokens"), builder.integer(1))
        is_seen = builder.add("GreaterOrEqual", places, builder.add("Gather", starts, owners))
        seen = builder.add("Unsqueeze", is_seen, builder.integers(1))
        rest = builder.number(0.0 if mode == "mean" else float("-inf"))
        rows = builder.add("Where", seen, rows, rest)
    shape = builder.add("Concat", builder.add("Shape", starts), builder.integers(width), axis=0)
    first = builder.constant([0.0 if mode == "mean" else -np.inf], np.float32)
    empty = builder.add("Expand", first, shape)
    index = builder.add("Unsqueeze", owners, builder.integers(1))
    result = builder.add("ScatterND", empty, index, rows, reduction="add" if mode == "mean" else "max")
    counts = builder.add("Unsqueeze", builder.add("Sub", ends, starts), builder.integers(1))
    if mode == "mean":
        least = builder.add("Max", counts, builder.integer(1))
        return builder.add("Div", result, builder.add("Cast", least, to=TensorProto.FLOAT))
    has_any = builder.add("Greater", counts, builder.integer(0))
    return builder.add("Where", has_any, result, builder.number(0.0))


def normalize(builder: GraphBuilder, rows: Value) -> Value:
    length = builder.add("ReduceL2", rows, builder.integers(1), keepdims=1)
    return builder.add("Div", rows, builder.add("Max", length, builder.number(LEAST_NORM)))
