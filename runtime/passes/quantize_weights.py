"""Linear layers over token rows become `padless::linear_weight_only`: weights of 8 bits, or of 4, activations as they
are.

What gives a generator's logits gets 8 bits in either case: it is a large part of what a step reads, and nothing
averages out how it is rounded. A table of tokens that it is tied to stays as it is for looking up, and so do experts,
norms and heads.
"""

from torch import Tensor
from torch.fx import GraphModule, Node

from runtime.capture import constant
from runtime.config import Precision
from runtime.ops import linear_weight_only
from runtime.passes.quantize import naming
from runtime.passes.rewriting import add_constant, find_head, read_linear, replace_node
from runtime.quantization.groups import quantize_groups
from runtime.quantization.simulate import find_last, find_linears
from runtime.quantization.weights import align_rows, quantize_weight


def quantize_weights(graph_module: GraphModule, *, bits: int) -> None:
    """`bits`: 4 or 8. Raises UnusableConfig where weights are not finite."""
    linears = find_linears(graph_module)
    last = find_last(linears, find_head(graph_module))
    for name, nodes in linears.items():
        quantize_linears(graph_module, nodes, 8 if name in last else bits, f"int{bits}_weights")  # type: ignore[arg-type]


def quantize_linears(graph_module: GraphModule, nodes: list[Node], bits: int, precision: Precision) -> None:
    """Those that share one weight."""
    weight = read_linear(nodes[0]).weight
    name = f"{weight.target}_int{bits}".replace(".", "_")
    with naming(weight, precision):
        parts = round_weight(constant(graph_module, weight), bits)
    how = {part: add_constant(graph_module, f"{name}_{part}", value) for part, value in parts.items()}
    for node in nodes:
        replace_node(node, linear_weight_only.OP, "linear_weight_only", **(vars(read_linear(node)) | how))


def round_weight(weight: Tensor, bits: int) -> dict[str, Tensor]:
    """The op's arguments by name."""
    if bits == 8:
        quantized = quantize_weight(weight, scheme=None, overflow_free=False)
        return {"weight": align_rows(quantized.values), "scale": quantized.scale}
    grouped = quantize_groups(weight)
    return {"weight": grouped.values, "scale": grouped.scale, "zero": grouped.zero}
