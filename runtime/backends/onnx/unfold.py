"""`padless::unfold`: each token's neighbours, gathered; behind the last lies a row of zeros for missing ones."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from runtime.backends.onnx.builder import Value
from runtime.backends.onnx.lowering import Lowering


def lower(lowering: Lowering, node: Node, arguments: Mapping[str, Any]) -> Value:
    rows = lowering.read(arguments["hidden_states"])
    width = int(arguments["hidden_states"].meta["val"].shape[1])
    neighbours = find_neighbours(lowering, rows, width, int(arguments["kernel_size"]))
    return lowering.builder.add(
        "Reshape", neighbours, lowering.builder.integers(-1, width * int(arguments["kernel_size"]))
    )


def find_neighbours(lowering: Lowering, rows: Value, width: int, kernel_size: int) -> Value:
    """[num_tokens, kernel_size, width]."""
    builder, owners = lowering.builder, lowering.read_groups("seq_ids")
    num_tokens = lowering.measure("num_tokens")
    places = builder.add("Range", builder.integer(0), num_tokens, builder.integer(1))
    offsets = builder.constant(np.arange(kernel_size)[None, :] - kernel_size // 2, np.int64)
    wanted = builder.add("Add", builder.add("Unsqueeze", places, builder.integers(1)), offsets)
    last = builder.add("Sub", num_tokens, builder.integer(1))
    inside = builder.add("Max", builder.add("Min", wanted, last), builder.integer(0))
    is_there = builder.add("Equal", wanted, inside)
    is_own = builder.add(
        "Equal", builder.add("Gather", owners, inside), builder.add("Unsqueeze", owners, builder.integers(1))
    )
    chosen = builder.add("Where", builder.add("And", is_there, is_own), inside, num_tokens)
    zeros = builder.weight("zeros", torch.zeros(1, width))
    padded = builder.add("Concat", rows, zeros, axis=0)
    return builder.add("Gather", padded, chosen)
