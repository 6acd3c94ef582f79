"""A sum of embeddings that only a LayerNorm reads becomes `padless::embed_norm`."""

import torch
from torch.fx import GraphModule, Node

from runtime.ops import embed_norm
from runtime.passes.rewriting import is_call, read, replace_node

aten = torch.ops.aten


def fuse_embed_norm(graph_module: GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if not is_call(node, aten.layer_norm.default):
            continue
        norm = read(node)
        lookups = list_lookups(norm.input)
        if lookups and norm.weight is not None and norm.bias is not None:
            calls = [read(lookup) for lookup in lookups]
            tables, indices = [call.weight for call in calls], [call.indices for call in calls]
            options = {"weight": norm.weight, "bias": norm.bias, "eps": norm.eps}
            replace_node(node, embed_norm.OP, "embed_norm", tables=tables, indices=indices, **options)


def list_lookups(node: object) -> list[Node] | None:
    """The embeddings whose plain sum `node` is, all of them for this one reader; None if it is something else."""
    if not isinstance(node, Node) or len(node.users) != 1:
        return None
    if is_call(node, aten.embedding.default):
        return [node]
    if not is_call(node, aten.add.Tensor) or node.kwargs:
        return None
    added = read(node)
    parts = [list_lookups(arg) for arg in (added.self, added.other)]
    return None if None in parts else [lookup for part in parts for lookup in part or ()]
