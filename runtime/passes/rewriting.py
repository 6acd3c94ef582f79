"""What several passes need: new constants, and shapes that stay true after a rewrite."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

from runtime.capture import UNREAD, find_attribute, find_unread
from runtime.lazy_module import LazyWeight
from runtime.ops import linear_act, linear_fp8, linear_int8, linear_weight_only, pool
from runtime.ops.spec import name_arguments

LINEAR = torch.ops.aten.linear.default
FLOAT_LINEARS = (LINEAR, linear_act.OP)
ROUNDED_LINEARS = (linear_int8.OP, linear_fp8.OP, linear_weight_only.OP)
"""Layers whose weights are rounded already."""
CAST = torch.ops.aten.to.dtype


def is_call(node: object, *targets: object) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def read(node: Node) -> Any:
    """The arguments of a call by the names of its op's schema, defaults included."""
    return SimpleNamespace(**name_arguments(node.target, node.args, node.kwargs))


def read_linear(node: Node) -> Any:
    """`aten.linear` or `padless::linear_act` by the latter's names."""
    call = read(node)
    if node.target is not LINEAR:
        return call
    return SimpleNamespace(x=call.input, weight=call.weight, bias=call.bias, act="none", residual=None)


def change(node: Node, **changes: object) -> None:
    """Give a call other arguments, by name."""
    node.args = order(node.target, vars(read(node)) | changes)
    node.kwargs = {}


def order(target: Any, named: Mapping[str, object]) -> tuple[Any, ...]:
    """Arguments as a call has them, which may be left out behind the last that is not the default."""
    schema = target._schema.arguments
    unknown = named.keys() - {argument.name for argument in schema}
    assert not unknown, f"{target} has no {', '.join(sorted(unknown))}. This is a bug."
    values = [named.get(argument.name, argument.default_value) for argument in schema]
    while schema[len(values) - 1].has_default_value() and is_default(values[-1], schema[len(values) - 1]):
        values.pop()
    return tuple(values)


def is_default(value: object, argument: Any) -> bool:
    return (
        not isinstance(value, Node) and type(value) is type(argument.default_value) and value == argument.default_value
    )


def insert_call(before: Node, target: object, name: str, **arguments: object) -> Node:
    graph = before.graph
    with graph.inserting_before(before):
        return graph.create_node("call_function", target, order(target, arguments), name=name)  # type: ignore[arg-type]


def replace_node(old: Node, target: object, name: str, **arguments: object) -> Node:
    """Put a call where `old` is; same shape and type."""
    graph = old.graph
    new = insert_call(old, target, name, **arguments)
    new.meta["val"] = old.meta["val"]
    old.replace_all_uses_with(new)
    graph.erase_node(old)
    return new


def find_head(graph_module: GraphModule) -> set[Node]:
    """Where the head begins, and everything computed from it, which stays fp32.

    It begins where rows are pooled, or where token rows are cast to fp32, which a head of tokens does.
    """
    head: set[Node] = set()
    for node in graph_module.graph.nodes:
        is_start = is_call(node, pool.OP) or (is_call(node, CAST) and node.meta["val"].dtype == torch.float32)
        if is_start or any(arg in head for arg in node.all_input_nodes):
            head.add(node)
    return head


def add_constant(graph_module: GraphModule, name: str, value: Tensor | LazyWeight) -> Node:
    """A node for a constant of that name, made from `value` unless the graph has it: shared weights stay shared."""
    graph = graph_module.graph
    node = find_constant(graph_module, name)
    if node is not None:
        return node
    fake = make_fake(graph_module, value)
    if isinstance(value, LazyWeight):
        graph_module.meta[UNREAD][name] = value
    graph_module.register_buffer(name, fake if isinstance(value, LazyWeight) else value)
    with graph.inserting_before(next(iter(graph.nodes))):
        node = graph.get_attr(name)
    node.meta["val"] = fake
    return node


def find_constant(graph_module: GraphModule, name: str) -> Node | None:
    nodes = graph_module.graph.find_nodes(op="get_attr", target=name)
    return next(iter(nodes), None)


def replace_constant(graph_module: GraphModule, node: Node, value: Tensor) -> None:
    """What a node stands for from now on. The value before it is let go of."""
    owner, _, name = str(node.target).rpartition(".")
    module = graph_module.get_submodule(owner)
    delattr(module, name)
    module.register_buffer(name, value)
    graph_module.meta[UNREAD].pop(str(node.target), None)
    node.meta["val"] = make_fake(graph_module, value)


def drop_constants(graph_module: GraphModule, *nodes: Node) -> None:
    """Let go of those among them that nothing reads any more, since a pass has put others in their place."""
    for node in nodes:
        if not node.users:
            owner, _, name = str(node.target).rpartition(".")
            graph_module.graph.erase_node(node)
            delattr(graph_module.get_submodule(owner), name)
            graph_module.meta[UNREAD].pop(str(node.target), None)


def make_fake(graph_module: GraphModule, value: Tensor | LazyWeight) -> Tensor:
    """A tensor of that shape and type, without values."""
    mode = fake_mode(graph_module)
    if isinstance(value, Tensor):
        return mode.from_tensor(value, static_shapes=True)
    with mode:
        return torch.empty(value.like.shape, dtype=value.like.dtype, device=find_device(graph_module))


def find_device(graph_module: GraphModule) -> torch.device:
    """What the graph's inputs are on, and so its constants."""
    values = (node.meta["val"] for node in graph_module.graph.find_nodes(op="placeholder"))
    return next(value.device for value in values if isinstance(value, Tensor))


def fake_mode(graph_module: GraphModule) -> FakeTensorMode:
    for node in graph_module.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, Tensor):
            return value.fake_mode  # type: ignore[attr-defined]
    raise AssertionError("A captured graph has tensor inputs. This is a bug.")


def infer_shapes(graph_module: GraphModule, *, only_missing: bool = False) -> None:
    """Recompute every node's shape and type from the constants and inputs; fails where a pass broke the graph.

    `only_missing`: those of new nodes alone, which takes a fraction of the time.
    """
    mode = fake_mode(graph_module)
    for node in graph_module.graph.nodes:
        if only_missing and "val" in node.meta:
            continue
        if node.op == "get_attr" and find_unread(graph_module, node) is None:
            node.meta["val"] = mode.from_tensor(find_attribute(graph_module, node), static_shapes=True)
        elif node.op == "call_function":
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda arg: arg.meta["val"])
            with mode:
                node.meta["val"] = node.target(*args, **kwargs)
