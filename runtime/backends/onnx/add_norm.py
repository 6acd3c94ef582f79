"""`padless::add_norm` and torch's LayerNorm: `SkipLayerNormalization` and `SkipSimplifiedLayerNormalization`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node

from runtime.backends.onnx.builder import ABSENT, Value
from runtime.backends.onnx.lowering import Lowering


def lower(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    builder, eps, is_rms = lowering.builder, float(arguments["eps"]), arguments["is_rms"]
    x, residual, weight, bias = (lowering.read(arguments[name]) for name in ("x", "residual", "weight", "bias"))
    if residual and is_rms:
        result = builder.contrib("SkipSimplifiedLayerNormalization", x, residual, weight, epsilon=eps)
    elif residual:
        result = builder.contrib("SkipLayerNormalization", x, residual, weight, bias, epsilon=eps)
    elif is_rms:
        result = builder.add("RMSNormalization", x, weight, axis=-1, epsilon=eps)
    else:
        return builder.add("LayerNormalization", x, weight, *([bias] if bias else []), axis=-1, epsilon=eps)
    return builder.add("Add", result, bias) if is_rms and bias else result


def lower_layer_norm(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    x, weight, bias = (lowering.read(arguments[name]) for name in ("input", "weight", "bias"))
    if not weight:
        width = int(node.meta["val"].shape[-1])
        weight = lowering.builder.weight("ones", torch.ones(width))
    eps = float(arguments["eps"])
    inputs = [x, weight, *([bias] if bias != ABSENT else [])]
    return lowering.builder.add("LayerNormalization", *inputs, axis=-1, epsilon=eps)
