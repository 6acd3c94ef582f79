"""Linear layers over token rows become `padless::linear_fp8`, weights rounded to e4m3 by output channel.

What gives a generator's logits stays as it is, as heads, experts, norms and embeddings do.
"""

from torch.fx import GraphModule, Node

from runtime.capture import constant
from runtime.ops import linear_fp8
from runtime.passes.quantize import naming
from runtime.passes.rewriting import add_constant, find_head, read_linear, replace_node
from runtime.quantization.e4m3 import quantize_channels
from runtime.quantization.simulate import find_last, find_linears


def quantize_fp8(graph_module: GraphModule) -> None:
    """Raises UnusableConfig where weights are not finite."""
    linears = find_linears(graph_module)
    last = find_last(linears, find_head(graph_module))
    for name, nodes in linears.items():
        if name not in last:
            quantize_linears(graph_module, nodes)


def quantize_linears(graph_module: GraphModule, nodes: list[Node]) -> None:
    """Those that share one weight."""
    weight = read_linear(nodes[0]).weight
    name = str(weight.target).replace(".", "_")
    with naming(weight, "fp8"):
        rounded = quantize_channels(constant(graph_module, weight))
    how = {
        "weight": add_constant(graph_module, f"{name}_fp8", rounded.values),
        "scale": add_constant(graph_module, f"{name}_scale", rounded.scale),
    }
    for node in nodes:
        replace_node(node, linear_fp8.OP, "linear_fp8", **(vars(read_linear(node)) | how))
