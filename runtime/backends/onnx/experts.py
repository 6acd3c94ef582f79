"""`padless::experts`: the tokens of each expert gathered, multiplied, and added to where they came from."""

from collections.abc import Mapping
from typing import Any

from torch.fx import Node

from runtime.backends.onnx.builder import Value
from runtime.backends.onnx.linear_act import activate
from runtime.backends.onnx.linear_int8 import multiply_rows
from runtime.backends.onnx.lowering import Lowering


def lower(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    builder, x = lowering.builder, lowering.read(arguments["x"])
    weights, chosen = choose(lowering, arguments)
    total = builder.add("Mul", x, builder.number(0.0))
    for expert in range(int(arguments["up"].meta["val"].shape[0])):
        found = builder.add("NonZero", builder.add("Equal", chosen, builder.integer(expert)))
        tokens = builder.add("Gather", found, builder.integer(0))
        rows = compute(lowering, arguments, expert, builder.add("Gather", x, tokens))
        share = builder.add("GatherND", weights, builder.add("Transpose", found, perm=[1, 0]))
        rows = builder.add("Mul", rows, builder.add("Unsqueeze", share, builder.integers(1)))
        places = builder.add("Unsqueeze", tokens, builder.integers(1))
        total = builder.add("ScatterND", total, places, rows, reduction="add")
    return total


def choose(lowering: Lowering, arguments: Mapping[str, Any]) -> tuple[Value, Value]:
    """Of each token the weights of its experts, and which they are, both [num_tokens, top_k]."""
    builder = lowering.builder
    logits = builder.add("MatMul", lowering.read(arguments["x"]), lowering.matrix(arguments["router"]))
    probabilities = builder.add("Softmax", logits, axis=-1)
    top_k = builder.integers(int(arguments["top_k"]))
    weights, chosen = builder.add_all("TopK", [probabilities, top_k], 2, axis=-1)
    if arguments["renormalize"]:
        total = builder.add("ReduceSum", weights, builder.integers(-1), keepdims=1)
        weights = builder.add("Div", weights, total)
    return weights, chosen


def compute(lowering: Lowering, arguments: Mapping[str, Any], expert: int, rows: Value) -> Value:
    """What one expert makes of its tokens."""
    builder = lowering.builder
    wide = multiply(lowering, arguments, "up", expert, rows)
    if arguments["is_gated"]:
        gate, other = builder.add_all("Split", [wide], 2, axis=1, num_outputs=2)
        wide = builder.add("Mul", activate(builder, gate, arguments["act"]), other)
    else:
        wide = activate(builder, wide, arguments["act"])
    return multiply(lowering, arguments, "down", expert, wide)


def multiply(lowering: Lowering, arguments: Mapping[str, Any], part: str, expert: int, rows: Value) -> Value:
    builder, scale = lowering.builder, arguments[f"{part}_scale"]
    weight = builder.weight(f"{part}_{expert}", lowering.tensor(arguments[part])[expert].t())
    if scale is None:
        return builder.add("MatMul", rows, weight)
    return multiply_rows(
        lowering, rows, weight, builder.weight(f"{part}_{expert}_scale", lowering.tensor(scale)[expert])
    )
