"""Rows by their numbers become `padless::gather`: embeddings with their scale and what is added to them, and the rows
of hidden states that a head reads."""

import torch
from torch.fx import GraphModule, Node

from runtime.ops import gather
from runtime.passes.rewriting import change, is_call, read, replace_node

aten = torch.ops.aten


def fuse_gather(graph_module: GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if is_call(node, aten.embedding.default):
            call = read(node)
            replace_lookup(node, call.weight, call.indices)
        elif is_call(node, aten.index_select.default) and read(node).dim == 0:
            call = read(node)
            replace_lookup(node, call.self, call.index)
        elif is_call(node, aten.mul.Tensor):
            fuse_scale(node)
        elif is_call(node, aten.add.Tensor) and not node.kwargs:
            fuse_residual(node)


def replace_lookup(node: Node, table: Node, index: Node) -> None:
    """Where the table is a matrix and the numbers are a list."""
    if len(table.meta["val"].shape) == 2 and len(index.meta["val"].shape) == 1:
        replace_node(node, gather.OP, "gather", table=table, index=index)


def fuse_scale(node: Node) -> None:
    product = read(node)
    rows, factor = product.self, product.other
    if isinstance(factor, float | int) and is_open(rows):
        change(rows, scale=read(rows).scale * factor)
        node.replace_all_uses_with(rows)
        node.graph.erase_node(node)


def fuse_residual(node: Node) -> None:
    added = read(node)
    for rows, residual in ((added.other, added.self), (added.self, added.other)):
        if is_open(rows) and is_like(rows, residual):
            replace_node(node, gather.OP, "gather_add", **(vars(read(rows)) | {"residual": residual}))
            return


def is_open(node: object) -> bool:
    """Rows that are gathered for one reader alone, and to which nothing is added yet."""
    return isinstance(node, Node) and is_call(node, gather.OP) and len(node.users) == 1 and read(node).residual is None


def is_like(rows: Node, other: object) -> bool:
    if not isinstance(other, Node):
        return False
    mine, theirs = rows.meta["val"], other.meta["val"]
    return bool(mine.shape == theirs.shape and mine.dtype == theirs.dtype)
