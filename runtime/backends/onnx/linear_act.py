"""`padless::linear_act` and torch's linear layer: `Gemm`, or `MatMul` and a fused activation."""

from collections.abc import Mapping
from typing import Any

from torch.fx import Node

from runtime.backends.onnx.builder import ABSENT, GraphBuilder, Value
from runtime.backends.onnx.lowering import Lowering


def lower(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    builder, act = lowering.builder, arguments["act"]
    x, bias = lowering.read(arguments["x"]), lowering.read(arguments["bias"])
    fused = {"gelu": "BiasGelu", "gelu_tanh": "FastGelu"}.get(act)
    if fused and bias:
        product = builder.add("MatMul", x, lowering.matrix(arguments["weight"]))
        result = builder.contrib(fused, product, bias)
    else:
        result = activate(builder, multiply(lowering, x, arguments["weight"], bias), act)
    residual = lowering.read(arguments["residual"])
    return builder.add("Add", result, residual) if residual else result


def lower_linear(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    x, bias = lowering.read(arguments["input"]), lowering.read(arguments["bias"])
    return multiply(lowering, x, arguments["weight"], bias)


def multiply(lowering: Lowering, x: Value, weight: Node, bias: Value) -> Value:
    inputs = [x, lowering.matrix(weight), *([bias] if bias else [])]
    return lowering.builder.add("Gemm", *inputs) if bias else lowering.builder.add("MatMul", *inputs)


def activate(builder: GraphBuilder, x: Value, act: str) -> Value:
    if act == "none":
        return x
    if act == "silu":
        return builder.contrib("QuickGelu", x, alpha=1.0)
    if act == "gelu_tanh":
        return builder.contrib("FastGelu", x, ABSENT)
    return builder.add({"gelu": "Gelu", "relu": "Relu", "tanh": "Tanh"}[act], x)
