"""Int8 layers are given the sums of their weights' columns, once, when the engine is built."""

import torch
from torch.fx import GraphModule, Node

from runtime.backends.cuda.ops import EXPERTS_SUMMED, LINEAR_INT8_SUMMED
from runtime.capture import constant
from runtime.ops import experts, linear_int8
from runtime.passes.rewriting import add_constant, is_call, read, replace_node


def sum_weights(graph_module: GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if is_call(node, linear_int8.OP):
            call = read(node)
            sums = add_sums(graph_module, call.weight)
            replace_node(node, LINEAR_INT8_SUMMED.target, "linear_int8", column_sums=sums, **vars(call))
        elif is_call(node, experts.OP) and read(node).up_scale is not None:
            call = read(node)
            sums_by_name = {f"{name}_sums": add_sums(graph_module, getattr(call, name)) for name in ("up", "down")}
            replace_node(node, EXPERTS_SUMMED.target, "experts", **vars(call) | sums_by_name)


def add_sums(graph_module: GraphModule, weight: Node) -> Node:
    values = constant(graph_module, weight)
    return add_constant(graph_module, f"{weight.target}_sums".replace(".", "_"), values.sum(-1, dtype=torch.int32))
