"""`padless::linear_act` and torch's linear layer: `Gemm`, or `MatMul` and a fused activation."""

from collections.abc import Mapping
from typing import Any

from torch.fx import Node

from runtime.backends.onnx.builder import ABSENT, GraphBuilder, Value
from runtime.backends.onnx.lowering import Lowering

FUSED = {"gelu": "BiasGelu", "gelu_tanh": "FastGelu"}
"""Activations that take a bias."""


def lower(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    builder, bias = lowering.builder, lowering.read(arguments["bias"])
    x, weight = lowering.read(arguments["x"]), lowering.matrix(arguments["weight"])
    if bias and arguments["act"] not in FUSED:
        return finish(lowering, builder.add("Gemm", x, weight, bias), arguments)
    return add_bias(lowering, builder.add("MatMul", x, weight), arguments)


def lower_linear(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    x, weight, bias = (
        lowering.read(arguments["input"]),
        lowering.matrix(arguments["weight"]),
        lowering.read(arguments["bias"]),
    )
    return lowering.builder.add("Gemm", x, weight, bias) if bias else lowering.builder.add("MatMul", x, weight)


def add_bias(lowering: Lowering, product: Value, arguments: Mapping[str, Any]) -> Value:
    """What comes behind a product: bias, activation and residual."""
    builder, act, bias = lowering.builder, arguments["act"], lowering.read(arguments["bias"])
    if bias and act in FUSED:
        return finish(lowering, builder.contrib(FUSED[act], product, bias), {**arguments, "act": "none"})
    return finish(lowering, builder.add("Add", product, bias) if bias else product, arguments)


def finish(lowering: Lowering, result: Value, arguments: Mapping[str, Any]) -> Value:
    result, residual = activate(lowering.builder, result, arguments["act"]), lowering.read(arguments["residual"])
    return lowering.builder.add("Add", result, residual) if residual else result


def activate(builder: GraphBuilder, x: Value, act: str) -> Value:
    if act == "none":
        return x
    if act == "silu":
        return builder.contrib("QuickGelu", x, alpha=1.0)
    if act == "gelu_tanh":
        return builder.contrib("FastGelu", x, ABSENT)
    return builder.add({"gelu": "Gelu", "relu": "Relu", "tanh": "Tanh"}[act], x)
