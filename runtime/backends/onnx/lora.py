"""`padless::lora`: the rows of each adapter gathered, multiplied, and added to where they came from."""

from collections.abc import Mapping
from typing import Any

from torch.fx import Node

from runtime.backends.onnx.builder import Value
from runtime.backends.onnx.linear_act import activate
from runtime.backends.onnx.lowering import Lowering


def lower(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    builder = lowering.builder
    total, x, ids = (lowering.read(arguments[name]) for name in ("rows", "x", "adapter_ids"))
    up = lowering.tensor(arguments["up"])
    down = None if arguments["down"] is None else lowering.tensor(arguments["down"])
    for adapter in range(len(up)):
        found = builder.add("NonZero", builder.add("Equal", ids, builder.integer(adapter + 1)))
        tokens = builder.add("Squeeze", found, builder.integers(0))
        narrow = builder.add("Gather", x, tokens)
        if down is not None:
            narrow = builder.add("MatMul", narrow, builder.weight(f"down_{adapter}", down[adapter].t()))
        rows = builder.add("MatMul", narrow, builder.weight(f"up_{adapter}", up[adapter]))
        total = builder.add(
            "ScatterND", total, builder.add("Unsqueeze", tokens, builder.integers(1)), rows, reduction="add"
        )
    return activate(builder, total, arguments["act"])
