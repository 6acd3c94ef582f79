"""Pooled rows that are only read to be scaled to length 1 (`torch.nn.functional.normalize`) are pooled so at once."""

import torch
from torch.fx import GraphModule, Node

from runtime.ops import pool
from runtime.passes.rewriting import arguments, is_call, replace_node

aten = torch.ops.aten


def fuse_pool(graph_module: GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if is_call(node, aten.div.Tensor) and is_normalize(node):
            (rows,) = arguments(node, 1)
            replace_node(node, pool.OP, (*rows.args[:3], True, *rows.args[4:]), "pool_normalize")


def is_normalize(div: Node) -> bool:
    """rows / max(|rows|, 1e-12), with rows from a pool that nobody else reads."""
    rows, divisor = arguments(div, 2)
    chain = []
    for target in (aten.expand_as.default, aten.clamp_min.default, aten.linalg_vector_norm.default):
        if not is_call(divisor, target) or len(divisor.users) != 1:
            return False
        chain.append(divisor)
        divisor = divisor.args[0]
    expand, clamp, norm = chain
    is_l2 = norm.args[1:4] == (2, [-1], True) or norm.args[1:4] == (2.0, [-1], True)
    is_pool = is_call(rows, pool.OP) and not rows.kwargs and not arguments(rows, 4)[3]
    is_only_scaled = norm.args[0] is rows and set(rows.users) == {norm, expand, div}
    return is_l2 and clamp.args[1] == 1e-12 and is_pool and is_only_scaled
