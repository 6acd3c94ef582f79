"""Linear layers that read the same tensor become one, its result cut into columns: one GEMM for Q, K and V.

A gate and what it lets through become another, which `fuse_gated_act` reads whole, and an activation keeps its layer to
itself: the two blocks of a layer may read one tensor. Layers of different modules stay apart: what an encoder gives is
read by the keys and values of all layers of a decoder. As one GEMM they are no faster, and with 6 layers of 512 the
plan takes twice the memory.
"""

import torch
from torch.fx import GraphModule, Node

from runtime.capture import as_weight
from runtime.lazy_module import concatenate
from runtime.passes.fuse_linear_act import ACTIVATIONS
from runtime.passes.rewriting import LINEAR, add_constant, insert_call, is_call, read


def fuse_qkv(graph_module: GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        for linears in group_linears(node):
            fuse_group(graph_module, linears)


def group_linears(source: Node) -> list[list[Node]]:
    """Linears over `source`, by the module they are in, with and without bias apart, and those of a feed-forward block
    from others; groups of one are left alone."""
    groups: dict[tuple[bool, bool, str], list[Node]] = {}
    for user in source.users:
        if is_call(user, LINEAR) and read(user).input is source:
            key = (read(user).bias is not None, feeds_activation(user), find_owner(read(user).weight))
            groups.setdefault(key, []).append(user)
    return [group for group in groups.values() if len(group) > 1]


def find_owner(weight: Node) -> str:
    """The module that has the layer: `attention` of `attention.q.weight`."""
    return ".".join(str(weight.target).split(".")[:-2])


def feeds_activation(linear: Node) -> bool:
    """Whether an activation reads it, or a product with one."""
    products = [user for user in linear.users if is_call(user, torch.ops.aten.mul.Tensor)]
    return any(
        is_call(node, *ACTIVATIONS) for node in (*linear.users, *(arg for each in products for arg in each.args))
    )


def fuse_group(graph_module: GraphModule, linears: list[Node]) -> None:
    graph = graph_module.graph
    first, calls = linears[0], [read(linear) for linear in linears]
    weight = fuse_constants(graph_module, [call.weight for call in calls])
    has_bias = calls[0].bias is not None
    bias = fuse_constants(graph_module, [call.bias for call in calls]) if has_bias else None
    fused = insert_call(first, LINEAR, "qkv", input=calls[0].input, weight=weight, bias=bias)
    start = 0
    for linear in linears:
        end = start + linear.meta["val"].shape[-1]
        part = insert_call(first, torch.ops.aten.slice.Tensor, "qkv_part", self=fused, dim=-1, start=start, end=end)
        linear.replace_all_uses_with(part)
        start = end
    # Only now: `first` marks the place.
    for linear in linears:
        graph.erase_node(linear)


def fuse_constants(graph_module: GraphModule, nodes: list[object]) -> Node:
    """The rows of several weights as one constant, named after them: q_weight, k_weight, v_weight -> qkv_weight."""
    names = [str(node.target).split(".") for node in nodes if isinstance(node, Node)]
    # Words they share stay, words that differ are joined.
    name = "_".join("".join(dict.fromkeys(words)) for words in zip(*names, strict=False))
    weights = [as_weight(graph_module, node) for node in nodes if isinstance(node, Node)]
    return add_constant(graph_module, name, concatenate(weights))
