"""What is added to a linear layer's result, of equal shape, is added by the layer itself."""

import torch
from torch.fx import GraphModule, Node

from runtime.ops import linear_act, linear_int8
from runtime.passes.rewriting import LINEAR, arguments, is_call, linear_arguments, replace_node

aten = torch.ops.aten
RESIDUAL_OF_LINEAR_ACT = 4


def fuse_linear_add(graph_module: GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if not is_call(node, aten.add.Tensor) or node.kwargs:
            continue
        first, second = node.args
        for linear, residual in ((first, second), (second, first)):
            if isinstance(linear, Node) and isinstance(residual, Node) and takes_residual(linear, residual):
                replace_node(node, *with_residual(linear, residual), "linear_add")
                break


def takes_residual(linear: Node, residual: Node) -> bool:
    """Whether `linear` is a layer that only this sum reads, adds nothing yet, and has rows like the residual's."""
    if not is_call(linear, LINEAR, linear_act.OP, linear_int8.OP) or len(linear.users) != 1:
        return False
    place = linear_int8.RESIDUAL if is_call(linear, linear_int8.OP) else RESIDUAL_OF_LINEAR_ACT
    mine, other = linear.meta["val"], residual.meta["val"]
    has_same_rows = len(mine.shape) == 2 and mine.shape == other.shape and mine.dtype == other.dtype
    return has_same_rows and arguments(linear, place + 1)[place] is None


def with_residual(linear: Node, residual: Node) -> tuple[object, tuple[object, ...]]:
    """The op and its arguments."""
    if is_call(linear, linear_int8.OP):
        args = list(linear.args)
        args[linear_int8.RESIDUAL] = residual
        return linear_int8.OP, tuple(args)
    x, weight, bias, act, _ = linear_arguments(linear)
    return linear_act.OP, (x, weight, bias, act, residual)
