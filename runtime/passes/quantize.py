"""Linear layers over token rows become `padless::linear_int8`; those that calibration left in float stay.

Where all readers of a norm or of an int8 layer are int8 layers that quantise alike, the rows are quantised once, by the
one that makes them. `padless::experts` gets int8 weights too, without smoothing: it quantises rows by itself. Its
router stays as it is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.fx import GraphModule, Node

from runtime.capture import constant
from runtime.config import Precision, UnusableConfig
from runtime.ops import add_norm, gated_act, linear_int8
from runtime.passes.rewriting import (
    add_constant,
    change,
    drop_constants,
    infer_shapes,
    is_call,
    read,
    read_linear,
    replace_node,
)
from runtime.quantization.calibrate import smooth_blindly
from runtime.quantization.scheme import LinearScheme, Quantization, check_model
from runtime.quantization.simulate import find_experts, find_linears, list_weights
from runtime.quantization.weights import QuantizedWeight, RoundChannels, quantize_weight, stack_weights


def quantize(
    graph_module: GraphModule,
    quantization: Quantization | None,
    *,
    overflow_free: bool,
    round_channels: RoundChannels | None = None,
    hands_on_rows: bool = True,
) -> None:
    """`quantization` None: every layer, smoothed by guess. `overflow_free`, `round_channels`: see `quantize_weight`,
    `hands_on_rows`: see `Backend`.

    Raises UnusableConfig where the calibration is of another model, or weights are not finite.
    """
    if quantization is not None:
        check_model(quantization, list_weights(graph_module))
    schemes = quantization.linears if quantization else smooth_blindly(graph_module)
    round_weight = partial(quantize_weight, overflow_free=overflow_free, round_channels=round_channels)
    for name, nodes in find_linears(graph_module).items():
        scheme = schemes.get(name, LinearScheme())
        if not scheme.is_float:
            quantize_linears(graph_module, nodes, scheme, round_weight)
    for name, node in find_experts(graph_module).items():
        if not schemes.get(name, LinearScheme()).is_float:
            quantize_experts(graph_module, node, round_weight)
    graph_module.graph.eliminate_dead_code()
    infer_shapes(graph_module, only_missing=True)
    if hands_on_rows:
        for node in list(graph_module.graph.nodes):
            quantize_for_readers(node)


def quantize_linears(
    graph_module: GraphModule, nodes: list[Node], scheme: LinearScheme, round_weight: Callable[..., QuantizedWeight]
) -> None:
    """Those that share one weight."""
    weight = read_linear(nodes[0]).weight
    name = str(weight.target).replace(".", "_")
    with naming(weight):
        quantized = round_weight(constant(graph_module, weight), scheme=scheme)
    x_scale, x_zero = static_scale(scheme)
    how: dict[str, object] = {
        "weight": add_constant(graph_module, f"{name}_int8", quantized.values),
        "scale": add_constant(graph_module, f"{name}_scale", quantized.scale),
        "inverse_smooth": None
        if scheme.smooth is None
        else add_constant(graph_module, f"{name}_smooth", 1 / scheme.smooth),
        "x_scale": x_scale,
        "x_zero": x_zero,
    }
    for node in nodes:
        replace_node(node, linear_int8.OP, "linear_int8", **(vars(read_linear(node)) | how))


def quantize_experts(graph_module: GraphModule, node: Node, round_weight: Callable[..., QuantizedWeight]) -> None:
    call = read(node)
    for part in ("up", "down"):
        weight: Node = getattr(call, part)
        name = str(weight.target).replace(".", "_")
        with naming(weight):
            quantized = stack_weights([round_weight(each, scheme=None) for each in constant(graph_module, weight)])
        values = add_constant(graph_module, f"{name}_int8", quantized.values)
        scale = add_constant(graph_module, f"{name}_scale", quantized.scale)
        change(node, **{part: values, f"{part}_scale": scale})
    drop_constants(graph_module, call.up, call.down)


@contextmanager
def naming(weight: Node, precision: Precision = "int8") -> Iterator[None]:
    """Raises UnusableConfig, with the weight's name, for what `quantize_weight` raises."""
    try:
        yield
    except ValueError as error:
        raise UnusableConfig(
            f"precision {precision}: in {weight.target} {error}; check the file, or take fp32"
        ) from None


def static_scale(scheme: LinearScheme) -> tuple[float, int]:
    """Scale and zero point of all rows; a scale of 0 for each row its own."""
    if scheme.static_range is None:
        return 0.0, 0
    low, high = min(scheme.static_range[0], 0.0), max(scheme.static_range[1], 0.0)
    scale = (high - low) / 255 or 1.0
    return scale, round(-low / scale)


def quantize_for_readers(node: Node) -> None:
    """Let `node` give quantised rows, if all that read it want them, and want the same."""
    if not is_call(node, linear_int8.OP, add_norm.OP, gated_act.OP) or not node.users:
        return
    readers = list(node.users)
    if not all(is_call(user, linear_int8.OP) and list(user.args).count(node) == 1 for user in readers):
        return
    calls = [read(user) for user in readers]
    wants = {(call.inverse_smooth, call.x_scale, call.x_zero) for call in calls}
    if len(wants) != 1 or not all(call.x is node for call in calls):
        return
    inverse_smooth, scale, zero = wants.pop()
    change(node, dtype=torch.uint8, out_inverse_smooth=inverse_smooth, out_scale=scale, out_zero=zero)
    for user in readers:
        change(user, inverse_smooth=None)
