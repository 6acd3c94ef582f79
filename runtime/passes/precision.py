"""Weights and activations in a 16-bit type; norms' weights, pooled rows and everything after them stay fp32.

The kernels keep softmax, means and variances in fp32 whatever the type. `padless::pool` returns fp32, so heads run in
fp32 on one row per sequence. Where the CPU has no 16-bit GEMM the linear layers keep fp32 weights (see `linear_act`).
"""

from collections.abc import Iterator

import torch
from torch.fx import GraphModule, Node

from runtime.capture import constant
from runtime.ops import add_norm, embed_norm, linear_act, linear_int8, paged_attention, pool
from runtime.passes.rewriting import LINEAR, find_pooled, infer_shapes, is_call

ROTARY = 12
FP32_ARGUMENTS = {
    add_norm.OP: (2, 3),
    embed_norm.OP: (2, 3),
    torch.ops.aten.layer_norm.default: (2, 3),
    paged_attention.OP: (ROTARY,),
}
"""Weights of norms, and the angles of rotations."""
LINEARS = (LINEAR, linear_act.OP)


def lower_precision(graph_module: GraphModule, dtype: torch.dtype, *, has_native_gemm: bool) -> None:
    pooled = find_pooled(graph_module)
    for node in graph_module.graph.nodes:
        if node.op != "get_attr" or not constant(graph_module, node).is_floating_point():
            continue
        if any(needs_fp32(node, user, pooled, has_native_gemm) for user in node.users):
            continue
        owner, _, name = str(node.target).rpartition(".")
        module = graph_module.get_submodule(owner)
        value = constant(graph_module, node).detach().to(dtype)
        delattr(module, name)
        module.register_buffer(name, value)
    if not has_native_gemm:
        use_mixed_linears(graph_module)
    for node in graph_module.graph.nodes:
        if is_call(node, linear_int8.OP) and node.args[linear_int8.DTYPE] == torch.float32:
            node.update_arg(linear_int8.DTYPE, dtype)
    infer_shapes(graph_module)


def needs_fp32(weight: Node, user: Node, pooled: set[Node], has_native_gemm: bool) -> bool:
    if user in pooled and not is_call(user, pool.OP):
        return True
    if is_call(user, linear_int8.OP) or (is_call(user, *LINEARS) and not has_native_gemm):
        return True
    return any(user.args[index] is weight for index in fp32_arguments(user))


def fp32_arguments(node: Node) -> Iterator[int]:
    for index in FP32_ARGUMENTS.get(node.target, ()):  # type: ignore[call-overload]
        if index < len(node.args):
            yield index


def use_mixed_linears(graph_module: GraphModule) -> None:
    """`aten.linear` refuses two types; `padless::linear_act` multiplies in the weight's."""
    for node in graph_module.graph.nodes:
        if is_call(node, LINEAR):
            x, weight, bias = (*node.args, None)[:3]
            node.target = linear_act.OP
            node.args = (x, weight, bias, "none")
