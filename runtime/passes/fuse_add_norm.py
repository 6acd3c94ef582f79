"""A sum that only a norm reads, and that norm, become `padless::add_norm`; so does every RMSNorm by itself."""

import torch
from torch.fx import GraphModule, Node

from runtime.ops import add_norm
from runtime.passes.rewriting import arguments, is_call, replace_node

aten = torch.ops.aten


def fuse_add_norm(graph_module: GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if is_call(node, aten.layer_norm.default) and is_plain_sum(node.args[0]) and has_affine(node):
            total, _, weight, bias, eps = node.args[:5]
            replace_node(node, add_norm.OP, (*total.args, weight, bias, eps), "add_norm")
            graph_module.graph.erase_node(total)
        elif is_call(node, aten.rms_norm.default):
            fuse_rms_norm(node)


def fuse_rms_norm(node: Node) -> None:
    total, _, weight, eps = arguments(node, 4)
    if weight is None or eps is None:
        return
    if not is_plain_sum(total):
        replace_node(node, add_norm.OP, (total, None, weight, None, eps, True), "rms_norm")
        return
    replace_node(node, add_norm.OP, (*total.args, weight, None, eps, True), "add_rms_norm")
    total.graph.erase_node(total)


def is_plain_sum(node: object) -> bool:
    """x + y of equal shapes, unscaled, with no other reader."""
    if not is_call(node, aten.add.Tensor):
        return False
    assert isinstance(node, Node)
    shapes = [arg.meta["val"].shape for arg in node.args if isinstance(arg, Node)]
    return len(node.users) == 1 and not node.kwargs and len(shapes) == 2 and shapes[0] == shapes[1]


def has_affine(norm: Node) -> bool:
    return len(norm.args) >= 5 and norm.args[2] is not None and norm.args[3] is not None
