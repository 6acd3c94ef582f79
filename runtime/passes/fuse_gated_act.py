"""act(gate) * other, both halves of one linear layer's result, become `padless::gated_act`."""

import torch
from torch.fx import GraphModule, Node

from runtime.ops import gated_act
from runtime.passes.fuse_linear_act import ACTIVATIONS, name_activation
from runtime.passes.rewriting import is_call, read, replace_node

aten = torch.ops.aten


def fuse_gated_act(graph_module: GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if not is_call(node, aten.mul.Tensor):
            continue
        product = read(node)
        for activation, other in ((product.self, product.other), (product.other, product.self)):
            if is_call(activation, *ACTIVATIONS) and are_halves(read(activation).self, other):
                x, act = read(other).self, name_activation(activation)
                replace_node(node, gated_act.OP, "gated_act", x=x, act=act)
                break


def are_halves(gate: object, other: object) -> bool:
    """The first and the second half of one tensor's columns, as `fuse_qkv` cuts them."""
    if not is_call(gate, aten.slice.Tensor) or not is_call(other, aten.slice.Tensor):
        return False
    assert isinstance(gate, Node) and isinstance(other, Node)
    first, second = read(gate), read(other)
    width = first.self.meta["val"].shape[-1]
    is_first = (first.dim, first.start, first.end) == (-1, 0, width // 2)
    return first.self is second.self and is_first and (second.dim, second.start, second.end) == (-1, width // 2, width)
