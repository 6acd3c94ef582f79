"""`padless::gated_act`."""

from collections.abc import Mapping
from typing import Any

from torch.fx import Node

from runtime.backends.onnx.builder import Value
from runtime.backends.onnx.linear_act import activate
from runtime.backends.onnx.lowering import Lowering


def lower(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    builder, x = lowering.builder, lowering.read(arguments["x"])
    gate, other = builder.add_all("Split", [x], 2, axis=1, num_outputs=2)
    return builder.add("Mul", activate(builder, gate, arguments["act"]), other)
