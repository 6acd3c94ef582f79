"""What is added to a linear layer's result, of equal shape, is added by the layer itself."""

import torch
from torch.fx import GraphModule, Node

from runtime.ops import linear_act
from runtime.passes.rewriting import (
    FLOAT_LINEARS,
    LINEAR,
    ROUNDED_LINEARS,
    is_call,
    read,
    read_linear,
    replace_node,
)

aten = torch.ops.aten


def fuse_linear_add(graph_module: GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if not is_call(node, aten.add.Tensor) or node.kwargs:
            continue
        added = read(node)
        first, second = added.self, added.other
        for linear, residual in ((first, second), (second, first)):
            if isinstance(linear, Node) and isinstance(residual, Node) and takes_residual(linear, residual):
                target = linear_act.OP if is_call(linear, LINEAR) else linear.target
                options = vars(read_linear(linear)) | {"residual": residual}
                replace_node(node, target, "linear_add", **options)
                break


def takes_residual(linear: Node, residual: Node) -> bool:
    """Whether `linear` is a layer that only this sum reads, adds nothing yet, and has rows like the residual's."""
    if not is_call(linear, *FLOAT_LINEARS, *ROUNDED_LINEARS) or len(linear.users) != 1:
        return False
    mine, other = linear.meta["val"], residual.meta["val"]
    has_same_rows = len(mine.shape) == 2 and mine.shape == other.shape and mine.dtype == other.dtype
    return has_same_rows and read_linear(linear).residual is None
