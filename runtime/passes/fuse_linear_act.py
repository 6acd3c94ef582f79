"""A linear layer and the activation that alone reads it become `padless::linear_act`; adapters have one as well."""

import torch
from torch.fx import GraphModule, Node

from runtime.ops import linear_act, lora
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
        source = read(node).self
        if not is_call(source, LINEAR, lora.OP) or len(source.users) != 1:
            continue
        act = {"act": name_activation(node)}
        if is_call(source, LINEAR):
            replace_node(node, linear_act.OP, "linear_act", **vars(read_linear(source)) | act)
        else:
            replace_node(node, lora.OP, "lora_act", **vars(read(source)) | act)
        graph_module.graph.erase_node(source)


def name_activation(node: Node) -> str:
    name = ACTIVATIONS[node.target]  # type: ignore[index]
    return "gelu_tanh" if node.kwargs.get("approximate") == "tanh" else name
