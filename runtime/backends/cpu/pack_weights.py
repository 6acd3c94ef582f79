"""Linear layers over weights laid out for the compiled CPU kernels, once, when the engine is built."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from runtime.backends.cpu.layouts import pack_bf16, pack_experts, pack_fp32, pack_int8, pad_bias
from runtime.backends.cpu.ops import EXPERTS_PACKED, LINEAR_ACT_PACKED, LINEAR_INT8_PACKED, MAX_LOGITS_PACKED
from runtime.capture import constant
from runtime.ops import experts, linear_act, linear_int8, max_logits
from runtime.passes.rewriting import (
    LINEAR,
    add_constant,
    drop_constants,
    find_constant,
    is_call,
    read,
    read_linear,
    replace_node,
)

PACK: dict[torch.dtype, Callable[[Tensor], Tensor]] = {torch.float32: pack_fp32, torch.bfloat16: pack_bf16}

PACK_EXPERTS: dict[torch.dtype, Callable[..., Tensor]] = {**PACK, torch.int8: pack_int8}


def pack_weights(graph_module: GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if is_call(node, linear_int8.OP):
            prepack_int8(graph_module, node)
        elif is_call(node, LINEAR, linear_act.OP) and read_linear(node).weight.meta["val"].dtype in PACK:
            prepack_float(graph_module, node)
        elif is_call(node, max_logits.OP):
            prepack_max_logits(graph_module, node)
        elif is_call(node, experts.OP) and read(node).up.meta["val"].dtype in PACK_EXPERTS:
            prepack_experts(graph_module, node)


def prepack_float(graph_module: GraphModule, node: Node) -> None:
    call = read_linear(node)
    name, like = name_packed(call.weight), call.weight.meta["val"]
    packed = find_constant(graph_module, name)
    if packed is None:
        packed = add_constant(graph_module, name, PACK[like.dtype](constant(graph_module, call.weight)))
    options = vars(call) | {"bias": pad_constant(graph_module, call.bias), "packed": packed}
    del options["weight"]
    replace_node(node, LINEAR_ACT_PACKED.target, "linear_packed", out_features=like.shape[0], **options)
    drop_constants(graph_module, call.weight)


def prepack_int8(graph_module: GraphModule, node: Node) -> None:
    call = read(node)
    name, like = name_packed(call.weight), call.weight.meta["val"]
    packed = find_constant(graph_module, name)
    if packed is None:
        values, scale = constant(graph_module, call.weight), constant(graph_module, call.scale)
        packed = add_constant(graph_module, name, pack_int8(values, scale))
    options = vars(call) | {"bias": pad_constant(graph_module, call.bias), "packed": packed}
    del options["weight"], options["scale"]
    sizes = {"out_features": like.shape[0], "in_features": like.shape[1]}
    replace_node(node, LINEAR_INT8_PACKED.target, "linear_int8_packed", **sizes, **options)
    drop_constants(graph_module, call.weight, call.scale)


def prepack_max_logits(graph_module: GraphModule, node: Node) -> None:
    """The table stays beside its packed form where ids are looked up in it, too."""
    call = read(node)
    name = name_packed(call.table)
    packed = find_constant(graph_module, name)
    if packed is None:
        packed = add_constant(graph_module, name, pack_fp32(constant(graph_module, call.table)))
    options = {"rows": call.rows, "packed": packed, "bias": pad_constant(graph_module, call.bias)}
    sizes = {"vocab_size": call.table.meta["val"].shape[0], "cu_seqlens": call.cu_seqlens}
    replace_node(node, MAX_LOGITS_PACKED.target, "max_logits_packed", **options, **sizes)
    drop_constants(graph_module, call.table)


def prepack_experts(graph_module: GraphModule, node: Node) -> None:
    call = read(node)
    sizes = {"num_experts": call.down.meta["val"].shape[0], "width": call.down.meta["val"].shape[2]}
    router = add_constant(graph_module, name_packed(call.router), pack_fp32(constant(graph_module, call.router)))
    weights = {
        "up": prepack_expert_weights(graph_module, call.up, call.up_scale),
        "down": prepack_expert_weights(graph_module, call.down, call.down_scale),
    }
    options = vars(call) | weights | sizes | {"router": router}
    del options["up_scale"], options["down_scale"]
    replace_node(node, EXPERTS_PACKED.target, "experts_packed", **options)
    old = (call.router, call.up, call.down, call.up_scale, call.down_scale)
    drop_constants(graph_module, *(each for each in old if each is not None))


def prepack_expert_weights(graph_module: GraphModule, weight: Node, scale: Node | None) -> Node:
    values = constant(graph_module, weight)
    scales = None if scale is None else constant(graph_module, scale)
    packed = pack_experts(values, scales, PACK_EXPERTS[values.dtype])
    return add_constant(graph_module, name_packed(weight), packed)


def pad_constant(graph_module: GraphModule, bias: object) -> Node | None:
    if not isinstance(bias, Node):
        return None
    return add_constant(graph_module, name_packed(bias), pad_bias(constant(graph_module, bias).float()))


def name_packed(node: Node) -> str:
    return str(node.target).replace(".", "_") + "_packed"
