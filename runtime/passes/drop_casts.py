"""Casts to the type a tensor has already, which copy and change nothing."""

import torch
from torch.fx import GraphModule, Node

from runtime.passes.rewriting import read


def drop_casts(graph_module: GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if node.target is not torch.ops.aten.to.dtype:
            continue
        source = read(node).self
        assert isinstance(source, Node)
        if source.meta["val"].dtype == node.meta["val"].dtype:
            node.replace_all_uses_with(source)
            graph_module.graph.erase_node(node)
