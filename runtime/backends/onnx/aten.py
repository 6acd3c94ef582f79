"""torch's own ops that are left in a rewritten graph."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from runtime.backends.onnx.add_norm import lower_layer_norm
from runtime.backends.onnx.builder import ONNX_TYPES, Value
from runtime.backends.onnx.linear_act import activate, lower_linear
from runtime.backends.onnx.lowering import Lower, Lowering

aten = torch.ops.aten
NUMPY_TYPES = {torch.float32: np.float32, torch.int64: np.int64, torch.int32: np.int32, torch.bool: np.bool_}


def find_operand(lowering: Lowering, value: object, dtype: torch.dtype) -> Value:
    """A tensor, or a number as one of that type."""
    if not isinstance(value, Node):
        assert isinstance(value, int | float), f"{value} is neither a tensor nor a number. This is a bug."
        return lowering.builder.constant(value, NUMPY_TYPES[dtype])
    found = value.meta["val"]
    if not isinstance(found, torch.Tensor):
        return lowering.builder.add("Cast", lowering.size(found), to=ONNX_TYPES[dtype])
    read = lowering.read(value)
    return read if found.dtype == dtype else lowering.builder.add("Cast", read, to=ONNX_TYPES[dtype])


def lower_arithmetic(op: str) -> Lower:
    def lower(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
        assert arguments.get("alpha", 1) == 1, "Nobody scales what is added. This is a bug."
        dtype = node.meta["val"].dtype
        return lowering.builder.add(op, *(find_operand(lowering, arguments[name], dtype) for name in ("self", "other")))

    return lower


def lower_unary(act: str) -> Lower:
    return lambda lowering, node, arguments: activate(lowering.builder, lowering.read(arguments["self"]), act)


def lower_gelu(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    act = "gelu_tanh" if arguments["approximate"] == "tanh" else "gelu"
    return activate(lowering.builder, lowering.read(arguments["self"]), act)


def lower_operator(op: str) -> Lower:
    return lambda lowering, node, arguments: lowering.builder.add(op, lowering.read(arguments["self"]))


def lower_view(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    """Reshape in all its forms."""
    return lowering.builder.add("Reshape", lowering.read(node.args[0]), lowering.shape(node.meta["val"].shape))


def lower_same(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    return lowering.read(node.args[0])


def lower_slice(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    builder, x = lowering.builder, lowering.read(arguments["self"])
    start, end = arguments["start"] or 0, arguments["end"]
    if start == 0 and end in (None, np.iinfo(np.int64).max) and arguments["step"] == 1:
        return x
    borders = [as_size(lowering, each) for each in (start, np.iinfo(np.int64).max if end is None else end)]
    return builder.add("Slice", x, *borders, builder.integers(arguments["dim"]), builder.integers(arguments["step"]))


def as_size(lowering: Lowering, value: object) -> Value:
    """int64 [1]."""
    if isinstance(value, int):
        return lowering.builder.integers(value)
    assert isinstance(value, Node), f"{value} is no size. This is a bug."
    return lowering.builder.add("Unsqueeze", lowering.size(value.meta["val"]), lowering.builder.integers(0))


def lower_select(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    index = lowering.builder.integer(int(arguments["index"]))
    return lowering.builder.add("Gather", lowering.read(arguments["self"]), index, axis=int(arguments["dim"]))


def lower_index_select(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    x, index = lowering.read(arguments["self"]), lowering.read(arguments["index"])
    return lowering.builder.add("Gather", x, index, axis=int(arguments["dim"]))


def lower_embedding(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    return lowering.builder.add("Gather", lowering.read(arguments["weight"]), lowering.read(arguments["indices"]))


def lower_arange(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    end = arguments["end"]
    limit = lowering.size(end.meta["val"] if isinstance(end, Node) else end)
    places = lowering.builder.add("Range", lowering.builder.integer(0), limit, lowering.builder.integer(1))
    dtype = node.meta["val"].dtype
    return places if dtype == torch.int64 else lowering.builder.add("Cast", places, to=ONNX_TYPES[dtype])


def lower_cumsum(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    dtype = node.meta["val"].dtype
    x = find_operand(lowering, arguments["self"], dtype)
    return lowering.builder.add("CumSum", x, lowering.builder.integer(int(arguments["dim"])))


def lower_cast(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    dtype = node.meta["val"].dtype
    x = lowering.read(node.args[0])
    assert isinstance(node.args[0], Node)
    return x if node.args[0].meta["val"].dtype == dtype else lowering.builder.add("Cast", x, to=ONNX_TYPES[dtype])


def lower_ne(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    dtype = arguments["self"].meta["val"].dtype
    operands = [find_operand(lowering, arguments[name], dtype) for name in ("self", "other")]
    return lowering.builder.add("Not", lowering.builder.add("Equal", *operands))


def lower_concatenation(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    parts = [lowering.read(each) for each in arguments["tensors"]]
    return lowering.builder.add("Concat", *parts, axis=int(arguments["dim"]))


def lower_clamp_min(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    least = find_operand(lowering, arguments["min"], node.meta["val"].dtype)
    return lowering.builder.add("Max", lowering.read(arguments["self"]), least)


def lower_expand_as(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    shape = lowering.builder.add("Shape", lowering.read(arguments["other"]))
    return lowering.builder.add("Expand", lowering.read(arguments["self"]), shape)


def lower_vector_norm(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    """The Euclidean one."""
    assert arguments["ord"] == 2, "Nobody takes another norm. This is a bug."
    axes = lowering.builder.integers(*arguments["dim"])
    return lowering.builder.add("ReduceL2", lowering.read(arguments["self"]), axes, keepdims=int(arguments["keepdim"]))


ATEN: dict[object, Lower] = {
    aten.linear.default: lower_linear,
    aten.layer_norm.default: lower_layer_norm,
    aten.add.Tensor: lower_arithmetic("Add"),
    aten.sub.Tensor: lower_arithmetic("Sub"),
    aten.mul.Tensor: lower_arithmetic("Mul"),
    aten.div.Tensor: lower_arithmetic("Div"),
    aten.gelu.default: lower_gelu,
    aten.silu.default: lower_unary("silu"),
    aten.relu.default: lower_unary("relu"),
    aten.tanh.default: lower_unary("tanh"),
    aten.sigmoid.default: lower_operator("Sigmoid"),
    aten.embedding.default: lower_embedding,
    aten.index_select.default: lower_index_select,
    aten.select.int: lower_select,
    aten.slice.Tensor: lower_slice,
    aten.view.default: lower_view,
    aten.reshape.default: lower_view,
    aten.flatten.using_ints: lower_view,
    aten.unflatten.int: lower_view,
    aten.unsqueeze.default: lower_view,
    aten.squeeze.dim: lower_view,
    aten.contiguous.default: lower_same,
    aten.dropout.default: lower_same,
    aten.cat.default: lower_concatenation,
    aten.clamp_min.default: lower_clamp_min,
    aten.expand_as.default: lower_expand_as,
    aten.linalg_vector_norm.default: lower_vector_norm,
    aten.arange.default: lower_arange,
    aten.cumsum.default: lower_cumsum,
    aten.to.dtype: lower_cast,
    aten.ne.Scalar: lower_ne,
}
