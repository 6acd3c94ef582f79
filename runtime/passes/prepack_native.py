"""fp32 and int8 linear layers over weights laid out for the compiled CPU kernels, once, when the engine is built."""

import torch
from torch.fx import GraphModule, Node

from runtime.capture import constant
from runtime.kernels.cpu.library import pack_fp32, pack_int8, pad_bias
from runtime.ops import linear_act, linear_int8
from runtime.passes.rewriting import LINEAR, add_constant, arguments, is_call, linear_arguments, replace_node


def prepack_native(graph_module: GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if is_call(node, linear_int8.OP):
            prepack_int8(graph_module, node)
        elif is_call(node, LINEAR, linear_act.OP) and linear_arguments(node)[1].meta["val"].dtype == torch.float32:
            prepack_fp32(graph_module, node)


def prepack_fp32(graph_module: GraphModule, node: Node) -> None:
    x, weight, bias, act, residual = linear_arguments(node)
    value = constant(graph_module, weight).detach()
    packed = add_constant(graph_module, name_packed(weight), pack_fp32(value))
    args = (x, packed, value.shape[0], pad_constant(graph_module, bias), act, residual)
    replace_node(node, linear_act.PACKED_OP, args, "linear_packed")


def prepack_int8(graph_module: GraphModule, node: Node) -> None:
    x, weight, scale, bias, *options = arguments(node, linear_int8.OUT_ZERO + 1)
    values = constant(graph_module, weight)
    packed = add_constant(graph_module, name_packed(weight), pack_int8(values, constant(graph_module, scale)))
    args = (x, packed, *values.shape, pad_constant(graph_module, bias), *options)
    replace_node(node, linear_int8.PACKED_OP, args, "linear_int8_packed")


def pad_constant(graph_module: GraphModule, bias: object) -> Node | None:
    if not isinstance(bias, Node):
        return None
    return add_constant(graph_module, name_packed(bias), pad_bias(constant(graph_module, bias).detach().float()))


def name_packed(node: Node) -> str:
    return str(node.target).replace(".", "_") + "_packed"
