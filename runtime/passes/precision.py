"""Weights and activations in a 16-bit type; norms' weights and the head stay fp32.

The kernels keep softmax, means and variances in fp32 whatever the type. `padless::pool` returns fp32, and heads over
token rows cast them to it, so heads run in fp32. torch's kernels on a CPU get linear layers in fp32 (`keep_linears`):
its 16-bit GEMM is slow without instructions for it, and what a row becomes depends on how many there are.
"""

import torch
from torch.fx import GraphModule, Node

from runtime.capture import constant
from runtime.ops import (
    add_norm,
    embed_norm,
    experts,
    linear_act,
    linear_int8,
    lora,
    paged_attention,
    pool,
    store_kv,
    varlen_attention,
)
from runtime.passes.rewriting import (
    CAST,
    FLOAT_LINEARS,
    LINEAR,
    ROUNDED_LINEARS,
    change,
    find_head,
    infer_shapes,
    insert_call,
    is_call,
    order,
    read,
    read_linear,
    replace_constant,
)

FP32_ARGUMENTS = {
    add_norm.OP: ("weight", "bias"),
    embed_norm.OP: ("weight", "bias"),
    experts.OP: ("router", "up_scale", "down_scale"),
    lora.OP: ("up", "down"),
    torch.ops.aten.layer_norm.default: ("weight", "bias"),
    store_kv.OP: ("rotary",),
    paged_attention.OP: ("rotary", "bias"),
    varlen_attention.OP: ("bias",),
}
"""Weights of norms, what chooses experts, adapters, the angles of rotations, what is added to scores."""


def lower_precision(graph_module: GraphModule, dtype: torch.dtype, *, keep_linears: bool = False) -> None:
    head = find_head(graph_module)
    for node in graph_module.graph.nodes:
        if node.op != "get_attr" or not node.meta["val"].is_floating_point():
            continue
        if not any(needs_fp32(node, user, head, keep_linears) for user in node.users):
            replace_constant(graph_module, node, constant(graph_module, node).to(dtype))
    if not keep_linears:
        cast_features(graph_module, dtype)
    use_mixed_linears(graph_module, head)
    for node in graph_module.graph.nodes:
        if is_call(node, linear_int8.OP) and read(node).dtype is None:
            change(node, dtype=dtype)
    infer_shapes(graph_module)


def needs_fp32(weight: Node, user: Node, head: set[Node], keep_linears: bool) -> bool:
    if user in head and not is_call(user, pool.OP):
        return True
    if is_call(user, *ROUNDED_LINEARS) or (is_call(user, *FLOAT_LINEARS, experts.OP) and keep_linears):
        return True
    names = FP32_ARGUMENTS.get(user.target, ())  # type: ignore[call-overload]
    return any(getattr(read(user), name) is weight for name in names)


def cast_features(graph_module: GraphModule, dtype: torch.dtype) -> None:
    """Rows of words come out of tables of that type; features come from outside, in fp32."""
    nodes = list(graph_module.graph.nodes)
    first_call = next(node for node in nodes if node.op not in ("placeholder", "get_attr"))
    for node in nodes:
        if node.op == "placeholder" and node.name == "features":
            cast = insert_call(first_call, CAST, "features_cast", self=node, dtype=dtype)
            node.replace_all_uses_with(cast, delete_user_cb=lambda user, cast=cast: user is not cast)


def use_mixed_linears(graph_module: GraphModule, head: set[Node]) -> None:
    """`aten.linear` refuses two types; `padless::linear_act` multiplies in the weight's."""
    for node in graph_module.graph.nodes:
        if is_call(node, LINEAR) and node not in head:
            call = read_linear(node)
            if call.weight.meta["val"].dtype == torch.float32:
                node.args, node.target = order(linear_act.OP, vars(call)), linear_act.OP
