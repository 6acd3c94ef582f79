"""`padless::linear_int8`: `MatMulIntegerToFloat` of rows that are quantised by a calibrated scale, or each by its own.

ONNX Runtime's own `DynamicQuantizeMatMul` takes one range for all rows: a text's numbers would depend on its
batch-mates, and one large number would cost all rows their precision.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.fx import Node

from runtime.backends.onnx.builder import Value
from runtime.backends.onnx.linear_act import add_bias
from runtime.backends.onnx.lowering import Lowering

MIDDLE = 128
"""The zero point of rows that have their own scale: ranges are as far below 0 as above."""
LARGEST = 127.0
LEAST_SCALE = 1e-20


def lower(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    builder, x = lowering.builder, lowering.read(arguments["x"])
    weight, scale = lowering.matrix(arguments["weight"]), lowering.read(arguments["scale"])
    if arguments["inverse_smooth"] is not None:
        x = builder.add("Mul", x, lowering.read(arguments["inverse_smooth"]))
    if arguments["x_scale"] > 0:
        x_scale = builder.number(float(arguments["x_scale"]))
        x_zero = builder.constant(int(arguments["x_zero"]), np.uint8)
        rows = builder.add("QuantizeLinear", x, x_scale, x_zero)
        result = builder.contrib("MatMulIntegerToFloat", rows, weight, x_scale, scale, x_zero)
    else:
        result = multiply_rows(lowering, x, weight, scale)
    return add_bias(lowering, result, arguments)


def multiply_rows(lowering: Lowering, x: Value, weight: Value, scale: Value) -> Value:
    """Each row by its own range."""
    builder = lowering.builder
    largest = builder.add("ReduceMax", builder.add("Abs", x), builder.integers(1), keepdims=0)
    scales = builder.add("Max", builder.add("Div", largest, builder.number(LARGEST)), builder.number(LEAST_SCALE))
    middles = builder.add("Expand", builder.constant(MIDDLE, np.uint8), builder.add("Shape", scales))
    rows = builder.add("QuantizeLinear", x, scales, middles, axis=0)
    middle = builder.constant(MIDDLE, np.uint8)
    sums = builder.contrib("MatMulIntegerToFloat", rows, weight, builder.number(1.0), scale, middle)
    return builder.add("Mul", sums, builder.add("Unsqueeze", scales, builder.integers(1)))
