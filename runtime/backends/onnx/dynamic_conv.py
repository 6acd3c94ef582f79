"""`padless::dynamic_conv`: neighbours, weighted and summed head by head."""

from collections.abc import Mapping
from typing import Any

from torch.fx import Node

from runtime.backends.onnx.builder import Value
from runtime.backends.onnx.lowering import Lowering
from runtime.backends.onnx.unfold import find_neighbours


def lower(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    builder, kernel_size = lowering.builder, int(arguments["kernel_size"])
    width = int(arguments["values"].meta["val"].shape[1])
    num_heads = int(arguments["kernels"].meta["val"].shape[1]) // kernel_size
    weights = builder.add("Reshape", lowering.read(arguments["kernels"]), builder.integers(-1, num_heads, kernel_size))
    if arguments["softmax"]:
        weights = builder.add("Softmax", weights, axis=2)
    weights = builder.add("Unsqueeze", builder.add("Transpose", weights, perm=[0, 2, 1]), builder.integers(3))
    neighbours = find_neighbours(lowering, lowering.read(arguments["values"]), width, kernel_size)
    rows = builder.add("Reshape", neighbours, builder.integers(-1, kernel_size, num_heads, width // num_heads))
    total = builder.add("ReduceSum", builder.add("Mul", rows, weights), builder.integers(1), keepdims=0)
    return builder.add("Reshape", total, builder.integers(-1, width))
