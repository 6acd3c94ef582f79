"""act(gate) * other, both halves of one linear layer's result, become `padless::gated_act`."""

import torch
from torch.fx import GraphModule, Node

from runtime.ops import gated_act
from runtime.passes.fuse_linear_act import ACTIVATIONS, name_activation
from runtime.passes.rewriting import arguments, is_call, replace_node

aten = torch.ops.aten


def fuse_gated_act(graph_module: GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if not is_call(node, aten.mul.Tensor):
            continue
        for activation, other in (node.args, node.args[::-1]):
            if is_call(activation, *ACTIVATIONS) and are_halves(activation.args[0], other):
                act = name_activation(activation)
                replace_node(node, gated_act.OP, (other.args[0], act), "gated_act")
                break


def are_halves(gate: object, other: object) -> bool:
    """The first and the second half of one tensor's columns, as `fuse_qkv` cuts them."""
    if not is_call(gate, aten.slice.Tensor) or not is_call(other, aten.slice.Tensor):
        return False
    assert isinstance(gate, Node) and isinstance(other, Node)
    source, dim, start, end = arguments(gate, 4)
    again, other_dim, other_start, other_end = arguments(other, 4)
    width = source.meta["val"].shape[-1]
    is_first = (dim, start, end) == (-1, 0, width // 2)
    return source is again and is_first and (other_dim, other_start, other_end) == (-1, width // 2, width)
