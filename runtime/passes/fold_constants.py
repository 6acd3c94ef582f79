"""What is computed from constants alone is computed once, here: MPNet's attention bias, tables of positions."""

from collections.abc import Set
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from runtime.backends.plain.table import VIEW_OPS
from runtime.capture import constant
from runtime.passes.rewriting import add_constant


def fold_constants(graph_module: GraphModule) -> None:
    """Views of constants stay views: they cost nothing, and share the constant's memory."""
    known: set[Node] = set()
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" or (node.op == "call_function" and can_fold(node, known)):
            known.add(node)
    for node in list(graph_module.graph.nodes):
        is_computed = node in known and node.op == "call_function" and node.target not in VIEW_OPS
        if is_computed and any(user not in known for user in read_through_views(node)):
            value = compute(graph_module, node)
            if isinstance(value, Tensor):
                node.replace_all_uses_with(add_constant(graph_module, f"{node.name}_folded", value.contiguous()))
    graph_module.graph.eliminate_dead_code()


def can_fold(node: Node, known: Set[Node]) -> bool:
    """Whether all that an op reads is known, and it changes nothing."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not schema.is_mutable and all(arg in known for arg in node.all_input_nodes)


def compute(graph_module: GraphModule, node: Node) -> Any:
    """A node's value, from the constants behind it."""
    if node.op == "get_attr":
        return constant(graph_module, node)
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda arg: compute(graph_module, arg))
    target: Any = node.target
    return target(*args, **kwargs)


def read_through_views(node: Node) -> list[Node]:
    """Those that read a node, or a view of it."""
    readers: list[Node] = []
    for user in node.users:
        readers += read_through_views(user) if user.target in VIEW_OPS else [user]
    return readers
