"""A linear layer and the activation that alone reads it become `padless::linear_act`."""

import torch
from torch.fx import GraphModule, Node

from runtime.ops import linear_act
from runtime.passes.rewriting import LINEAR, is_call, read, read_linear, replace_node

aten = torch.ops.aten
ACTIVATIONS = {
    aten.gelu.default: "gelu",
    aten.relu.default: "relu",
    aten.silu.default: "silu",
    aten.tanh.default: "tanh",
}


def fuse_linear_act(graph_module: GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if not is_call(node, *ACTIVATIONS):
            continue
        linear = read(node).self
        if is_call(linear, LINEAR) and len(linear.users) == 1:
            options = vars(read_linear(linear)) | {"act": name_activation(node)}
            replace_node(node, linear_act.OP, "linear_act", **options)
            graph_module.graph.erase_node(linear)


def name_activation(node: Node) -> str:
    name = ACTIVATIONS[node.target]  # type: ignore[index]
    return "gelu_tanh" if node.kwargs.get("approximate") == "tanh" else name
