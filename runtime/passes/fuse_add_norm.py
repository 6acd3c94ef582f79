"""LayerNorm and RMSNorm become `padless::add_norm`, together with a sum that they alone read."""

from typing import Any

import torch
from torch.fx import GraphModule, Node

from runtime.ops import add_norm
from runtime.passes.rewriting import is_call, read, replace_node

aten = torch.ops.aten


def fuse_add_norm(graph_module: GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if not is_call(node, aten.layer_norm.default, aten.rms_norm.default):
            continue
        norm = read(node)
        is_rms = is_call(node, aten.rms_norm.default)
        if len(norm.normalized_shape) == 1 and norm.weight is not None and norm.eps is not None:
            fuse_norm(node, norm, None if is_rms else norm.bias, is_rms)


def fuse_norm(node: Node, norm: Any, bias: Node | None, is_rms: bool) -> None:
    has_sum = is_plain_sum(norm.input)
    added = read(norm.input) if has_sum else None
    x, residual = (added.self, added.other) if added else (norm.input, None)
    name = ("add_" if has_sum else "") + ("rms_norm" if is_rms else "norm")
    options = {"weight": norm.weight, "bias": bias, "eps": norm.eps, "is_rms": is_rms}
    replace_node(node, add_norm.OP, name, x=x, residual=residual, **options)
    if has_sum:
        norm.input.graph.erase_node(norm.input)


def is_plain_sum(node: object) -> bool:
    """x + y of equal shapes, unscaled, with no other reader."""
    if not is_call(node, aten.add.Tensor):
        return False
    assert isinstance(node, Node)
    shapes = [arg.meta["val"].shape for arg in node.args if isinstance(arg, Node)]
    return len(node.users) == 1 and not node.kwargs and len(shapes) == 2 and shapes[0] == shapes[1]
