"""What is computed from constants alone is computed once, here: MPNet's attention bias, tables of positions."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from runtime.backends.plain.table import VIEW_OPS
from runtime.capture import constant
from runtime.passes.rewriting import add_constant


def fold_constants(graph_module: GraphModule) -> None:
    """Views of constants stay views: they cost nothing, and share the constant's memory."""
    known: dict[Node, Any] = {}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            known[node] = constant(graph_module, node).detach()
        elif node.op == "call_function" and can_fold(node, known):
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    for node, value in known.items():
        is_computed = node.op == "call_function" and node.target not in VIEW_OPS and isinstance(value, Tensor)
        if is_computed and any(user not in known for user in read_through_views(node)):
            node.replace_all_uses_with(add_constant(graph_module, f"{node.name}_folded", value.contiguous()))
    graph_module.graph.eliminate_dead_code()


def can_fold(node: Node, known: dict[Node, Any]) -> bool:
    """Whether all that an op reads is known, and it changes nothing."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not schema.is_mutable and all(arg in known for arg in node.all_input_nodes)


def read_through_views(node: Node) -> list[Node]:
    """Those that read a node, or a view of it."""
    readers: list[Node] = []
    for user in node.users:
        readers += read_through_views(user) if user.target in VIEW_OPS else [user]
    return readers
