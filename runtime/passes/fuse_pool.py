"""Pooled rows that are only read to be scaled to length 1 (`torch.nn.functional.normalize`) are pooled so at once."""

import torch
from torch.fx import GraphModule, Node

from runtime.ops import pool
from runtime.passes.rewriting import is_call, read, replace_node

aten = torch.ops.aten


def fuse_pool(graph_module: GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if is_call(node, aten.div.Tensor) and is_normalize(node):
            rows = read(node).self
            replace_node(node, pool.OP, "pool_normalize", **(vars(read(rows)) | {"normalize": True}))


def is_normalize(div: Node) -> bool:
    """rows / max(|rows|, 1e-12), with rows from a pool that nobody else reads."""
    scaled = read(div)
    divisor, chain = scaled.other, []
    for target in (aten.expand_as.default, aten.clamp_min.default, aten.linalg_vector_norm.default):
        if not is_call(divisor, target) or len(divisor.users) != 1:
            return False
        chain.append(divisor)
        divisor = read(divisor).self
    expand, clamp, norm = chain
    length = read(norm)
    is_l2 = (length.ord, length.dim, length.keepdim) == (2, [-1], True) and read(clamp).min == 1e-12
    is_pool = is_call(scaled.self, pool.OP) and not read(scaled.self).normalize
    return is_l2 and is_pool and divisor is scaled.self and set(scaled.self.users) == {norm, expand, div}
