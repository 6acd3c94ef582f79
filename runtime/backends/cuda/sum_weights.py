"""Int8 layers are given the sums of their weights' columns, once, when the engine is built.

Weights get columns of zeros, so that each row begins where a device can load 16 bytes at once. Quantized rows have
zeros there already.
"""

import torch
from torch.fx import GraphModule, Node

from runtime.backends.cuda.ops import EXPERTS_SUMMED, LINEAR_INT8_SUMMED
from runtime.capture import constant
from runtime.ops import experts, linear_int8
from runtime.passes.rewriting import add_constant, drop_constants, is_call, read, replace_node
from runtime.quantization.weights import ALIGNMENT, align_rows


def sum_weights(graph_module: GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if is_call(node, linear_int8.OP):
            call = read(node)
            changed = {
                "weight": pad_weight(graph_module, call.weight),
                "column_sums": add_sums(graph_module, call.weight),
            }
            replace_node(node, LINEAR_INT8_SUMMED.target, "linear_int8", **vars(call) | changed)
            drop_constants(graph_module, call.weight)
        elif is_call(node, experts.OP) and read(node).up_scale is not None:
            call = read(node)
            sums_by_name = {f"{name}_sums": add_sums(graph_module, getattr(call, name)) for name in ("up", "down")}
            replace_node(node, EXPERTS_SUMMED.target, "experts", **vars(call) | sums_by_name)


def add_sums(graph_module: GraphModule, weight: Node) -> Node:
    values = constant(graph_module, weight)
    return add_constant(graph_module, f"{weight.target}_sums".replace(".", "_"), values.sum(-1, dtype=torch.int32))


def pad_weight(graph_module: GraphModule, weight: Node) -> Node:
    if weight.meta["val"].shape[1] % ALIGNMENT == 0:
        return weight
    values = align_rows(constant(graph_module, weight))
    return add_constant(graph_module, f"{weight.target}_padded".replace(".", "_"), values)
