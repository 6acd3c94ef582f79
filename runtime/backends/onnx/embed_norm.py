"""`padless::embed_norm`: `EmbedLayerNormalization` of three tables, else look-ups and a norm."""

from collections.abc import Mapping
from typing import Any

from onnx import TensorProto
from torch.fx import Node

from runtime.backends.onnx.builder import ABSENT, CONTRIB, Value
from runtime.backends.onnx.lowering import Lowering


def lower(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    builder, eps = lowering.builder, float(arguments["eps"])
    tables = [lowering.read(each) for each in arguments["tables"]]
    indices = [lowering.read(each) for each in arguments["indices"]]
    weight, bias = lowering.read(arguments["weight"]), lowering.read(arguments["bias"])
    if len(tables) == 3:
        # One sequence of all tokens: which table is of words, positions or segments makes no difference to their sum.
        words, places, kinds = (as_row(lowering, each) for each in indices)
        inputs = [words, kinds, tables[0], tables[1], tables[2], weight, bias, ABSENT, places]
        rows = builder.add_all("EmbedLayerNormalization", inputs, 2, domain=CONTRIB, epsilon=eps)[0]
        return builder.add("Squeeze", rows, builder.integers(0))
    total, *others = (builder.add("Gather", *each) for each in zip(tables, indices, strict=True))
    for each in others:
        total = builder.add("Add", total, each)
    return builder.add("LayerNormalization", total, weight, bias, axis=-1, epsilon=eps)


def as_row(lowering: Lowering, index: Value) -> Value:
    narrow = lowering.builder.add("Cast", index, to=TensorProto.INT32)
    return lowering.builder.add("Unsqueeze", narrow, lowering.builder.integers(0))
