"""`padless::linear_int8`: `MatMulIntegerToFloat` where calibration has found a scale, else `DynamicQuantizeMatMul`.

The latter takes one range for all rows, where the op takes each row's own: a text's numbers depend a little on its
batch-mates.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from runtime.backends.onnx.builder import ABSENT, Value
from runtime.backends.onnx.linear_act import activate
from runtime.backends.onnx.lowering import Lowering


def lower(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    builder = lowering.builder
    x, bias = lowering.read(arguments["x"]), lowering.read(arguments["bias"])
    weight, scale = lowering.matrix(arguments["weight"]), lowering.read(arguments["scale"])
    if arguments["inverse_smooth"] is not None:
        x = builder.add("Mul", x, lowering.read(arguments["inverse_smooth"]))
    if arguments["x_scale"] > 0:
        x_scale = builder.number(float(arguments["x_scale"]))
        x_zero = builder.constant(int(arguments["x_zero"]), np.uint8)
        rows = builder.add("QuantizeLinear", x, x_scale, x_zero)
        inputs = [rows, weight, x_scale, scale, x_zero, ABSENT, bias]
        result = builder.contrib("MatMulIntegerToFloat", *inputs)
    else:
        zeros = builder.weight("no_zeros", torch.zeros(int(node.meta["val"].shape[1]), dtype=torch.int8))
        result = builder.contrib("DynamicQuantizeMatMul", x, weight, scale, zeros, bias)
    result = activate(builder, result, arguments["act"])
    residual = lowering.read(arguments["residual"])
    return builder.add("Add", result, residual) if residual else result
