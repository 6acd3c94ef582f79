"""`padless::max_logits`: sequence by sequence and by parts of the vocabulary: all logits never are in memory."""

from collections.abc import Mapping
from typing import Any

from torch.fx import Node

from runtime.backends.onnx.builder import GraphBuilder, Value
from runtime.backends.onnx.lowering import Lowering
from runtime.backends.onnx.pool import find_borders

PART_WORDS = 4096
"""Of the vocabulary at a time."""


def lower(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    builder = lowering.builder
    rows, bias = lowering.read(arguments["rows"]), lowering.read(arguments["bias"])
    parts = lowering.tensor(arguments["table"]).split(PART_WORDS)
    starts, ends = find_borders(builder, lowering.read(arguments["cu_seqlens"]))

    def take_turn(body: GraphBuilder, turn: Value) -> Value:
        zero = body.integers(0)
        start, end = (body.add("Unsqueeze", body.add("Gather", each, turn), zero) for each in (starts, ends))
        own = body.add("Slice", rows, start, end, zero)
        products = (body.add("MatMul", own, body.weight("words", part.t())) for part in parts)
        found = [body.add("ReduceMax", product, zero, keepdims=1) for product in products]
        return body.add("Add", body.add("Concat", *found, axis=1), bias)

    return builder.collect(builder.add("Squeeze", builder.add("Shape", starts)), take_turn)
