"""16-bit linear layers on CPUs with bf16 instructions: oneDNN's, over weights packed once, activation included."""

import torch
from torch.fx import GraphModule, Node

from runtime.capture import constant
from runtime.ops import linear_act
from runtime.passes.rewriting import LINEAR, insert_call, is_call, read_linear, replace_node

ONEDNN = torch.ops.mkldnn._linear_pointwise.default
ONEDNN_ACTIVATIONS = {
    "none": ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
    "tanh": ("tanh", ""),
}


def prepack_onednn(graph_module: GraphModule) -> None:
    """Replace linears by oneDNN's over packed weights. These allocate their own result and are counted as such.
    What is added to a result is an op of its own again: oneDNN adds only where there is no activation."""
    for node in list(graph_module.graph.nodes):
        if not is_call(node, LINEAR, linear_act.OP):
            continue
        call = read_linear(node)
        if node.meta["val"].dtype != call.weight.meta["val"].dtype:
            continue
        attr, algorithm = ONEDNN_ACTIVATIONS[call.act]
        options = {"X": call.x, "W": pack_weight(graph_module, call.weight), "B": call.bias}
        options |= {"attr": attr, "scalars": [], "algorithm": algorithm}
        if call.residual is None:
            replace_node(node, ONEDNN, "linear_onednn", **options)
        else:
            product = insert_call(node, ONEDNN, "linear_onednn", **options)
            product.meta["val"] = node.meta["val"]
            replace_node(node, torch.ops.aten.add.Tensor, "linear_add", self=product, other=call.residual)


def pack_weight(graph_module: GraphModule, weight: Node) -> Node:
    """The constant for a packed weight, packed once however many layers share it."""
    name = str(weight.target).replace(".", "_") + "_onednn"
    graph = graph_module.graph
    for node in graph.nodes:
        if node.op == "get_attr" and node.target == name:
            return node
    packed = torch.ops.mkldnn._reorder_linear_weight(constant(graph_module, weight).detach().contiguous(), None)
    graph_module.register_buffer(name, packed)
    with graph.inserting_before(next(iter(graph.nodes))):
        node = graph.get_attr(name)
    # A packed weight is opaque to shape functions; for them it stays what it was.
    node.meta["val"] = weight.meta["val"]
    return node
