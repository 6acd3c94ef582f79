"""`padless::max_logits`: sequence by sequence and by parts of the vocabulary: all logits never are in memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from torch.fx import Node

from runtime.backends.onnx.builder import Value
from runtime.backends.onnx.lowering import Lowering
from runtime.backends.onnx.pool import find_borders

PART_WORDS = 4096
"""Of the vocabulary at a time."""


def lower(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    outer, body = lowering.builder, lowering.builder.body()
    rows, bias = lowering.read(arguments["rows"]), lowering.read(arguments["bias"])
    parts = lowering.tensor(arguments["table"]).split(PART_WORDS)
    starts, ends = find_borders(outer, lowering.read(arguments["cu_seqlens"]))
    turn, goes_on = body.name("turn"), body.name("goes_on")
    zero = body.integers(0)
    start, end = (body.add("Unsqueeze", body.add("Gather", each, turn), zero) for each in (starts, ends))
    own = body.add("Slice", rows, start, end, zero)
    products = (body.add("MatMul", own, body.weight("words", part.t())) for part in parts)
    found = [body.add("ReduceMax", product, zero, keepdims=0) for product in products]
    largest = body.add("Add", body.add("Concat", *found, axis=0), bias)
    kept = body.add("Identity", goes_on)
    body.inputs += [
        helper.make_tensor_value_info(turn, TensorProto.INT64, []),
        helper.make_tensor_value_info(goes_on, TensorProto.BOOL, []),
    ]
    body.outputs += [
        helper.make_tensor_value_info(kept, TensorProto.BOOL, []),
        helper.make_tensor_value_info(largest, TensorProto.FLOAT, None),
    ]
    num_seqs = outer.add("Squeeze", outer.add("Shape", starts))
    always = outer.constant(True, np.bool_)
    return outer.add("Loop", num_seqs, always, body=body.build(outer.name("sequence")))
