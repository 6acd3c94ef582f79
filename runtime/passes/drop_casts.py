"""Casts to the type a tensor has already, which copy and change nothing."""

from torch.fx import GraphModule, Node

from runtime.passes.rewriting import CAST, read


def drop_casts(graph_module: GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if node.target is not CAST:
            continue
        source = read(node).self
        assert isinstance(source, Node)
        if source.meta["val"].dtype == node.meta["val"].dtype:
            node.replace_all_uses_with(source)
            graph_module.graph.erase_node(node)
