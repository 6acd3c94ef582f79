"""A sum of embeddings that only a LayerNorm reads becomes `padless::embed_norm`."""

import torch
from torch.fx import GraphModule, Node

from runtime.ops import embed_norm
from runtime.passes.rewriting import arguments, is_call, replace_node

aten = torch.ops.aten


def fuse_embed_norm(graph_module: GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if not is_call(node, aten.layer_norm.default):
            continue
        total, _, weight, bias, eps = arguments(node, 5)
        lookups = list_lookups(total)
        if lookups and weight is not None and bias is not None and eps is not None:
            tables, indices = [lookup.args[0] for lookup in lookups], [lookup.args[1] for lookup in lookups]
            replace_node(node, embed_norm.OP, (tables, indices, weight, bias, eps), "embed_norm")


def list_lookups(node: object) -> list[Node] | None:
    """The embeddings whose plain sum `node` is, all of them for this one reader; None if it is something else."""
    if not isinstance(node, Node) or len(node.users) != 1:
        return None
    if is_call(node, aten.embedding.default):
        return [node]
    if not is_call(node, aten.add.Tensor) or node.kwargs:
        return None
    parts = [list_lookups(arg) for arg in node.args]
    return None if None in parts else [lookup for part in parts for lookup in part or ()]
