"""Linear layers over token rows become `padless::linear_int8`; those that calibration left in float stay.

Where all readers of a norm or of an int8 layer are int8 layers that quantise alike, the rows are quantised once, by the
one that makes them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.fx import GraphModule, Node

from runtime.capture import constant
from runtime.config import UnusableConfig
from runtime.ops import add_norm, gated_act, linear_int8
from runtime.passes.rewriting import (
    add_constant,
    arguments,
    infer_shapes,
    is_call,
    linear_arguments,
    replace_node,
)
from runtime.quantization.calibrate import smooth_blindly
from runtime.quantization.scheme import LinearScheme, Quantization, check_model
from runtime.quantization.simulate import find_linears, linear_weights
from runtime.quantization.weights import QuantizedWeight, RoundChannels, quantize_weight

aten = torch.ops.aten


def quantize(
    graph_module: GraphModule,
    quantization: Quantization | None,
    *,
    overflow_free: bool,
    round_channels: RoundChannels | None = None,
) -> None:
    """`quantization` None: every layer, smoothed by guess. `overflow_free`, `round_channels`: see `quantize_weight`.

    Raises UnusableConfig where the calibration is of another model, or weights are not finite.
    """
    if quantization is not None:
        check_model(quantization, linear_weights(graph_module))
    schemes = quantization.linears if quantization else smooth_blindly(graph_module)
    round_weight = partial(quantize_weight, overflow_free=overflow_free, round_channels=round_channels)
    for name, nodes in find_linears(graph_module).items():
        scheme = schemes.get(name, LinearScheme())
        for node in nodes if not scheme.is_float else ():
            quantize_linear(graph_module, node, scheme, round_weight)
    graph_module.graph.eliminate_dead_code()
    infer_shapes(graph_module)
    for node in list(graph_module.graph.nodes):
        quantize_for_readers(node)


def quantize_linear(
    graph_module: GraphModule, node: Node, scheme: LinearScheme, round_weight: Callable[..., QuantizedWeight]
) -> None:
    x, weight, bias, act, _ = linear_arguments(node)
    name = str(weight.target).replace(".", "_")
    value = constant(graph_module, weight).detach().float()
    try:
        quantized = round_weight(value, scheme=scheme)
    except ValueError as error:
        raise UnusableConfig(f"precision int8: in {weight.target} {error}; check the file, or take fp32") from None
    smooth = None if scheme.smooth is None else add_constant(graph_module, f"{name}_smooth", 1 / scheme.smooth)
    args = (
        x,
        add_constant(graph_module, f"{name}_int8", quantized.values),
        add_constant(graph_module, f"{name}_scale", quantized.scale),
        bias,
        act,
        None,
        smooth,
        *static_scale(scheme),
        torch.float32,
        None,
        0.0,
        0,
    )
    replace_node(node, linear_int8.OP, args, "linear_int8")


def static_scale(scheme: LinearScheme) -> tuple[float, int]:
    """Scale and zero point of all rows; a scale of 0 for each row its own."""
    if scheme.static_range is None:
        return 0.0, 0
    low, high = min(scheme.static_range[0], 0.0), max(scheme.static_range[1], 0.0)
    scale = (high - low) / 255 or 1.0
    return scale, round(-low / scale)


def quantize_for_readers(node: Node) -> None:
    """Let `node` give quantised rows, if all that read it want them, and want the same."""
    if not is_call(node, linear_int8.OP, add_norm.OP, aten.layer_norm.default, gated_act.OP) or not node.users:
        return
    readers = list(node.users)
    if not all(is_call(user, linear_int8.OP) and user.args[linear_int8.X] is node for user in readers):
        return
    wants = {(*user.args[linear_int8.INVERSE_SMOOTH : linear_int8.X_ZERO + 1],) for user in readers}
    if len(wants) != 1 or any(node in user.args[linear_int8.X + 1 :] for user in readers):
        return
    write_quantized(node, *wants.pop())
    for user in readers:
        user.update_arg(linear_int8.INVERSE_SMOOTH, None)


def write_quantized(node: Node, inverse_smooth: Any, scale: Any, zero: Any) -> None:
    if is_call(node, linear_int8.OP):
        for index, value in zip(
            (linear_int8.DTYPE, linear_int8.OUT_INVERSE_SMOOTH, linear_int8.OUT_SCALE, linear_int8.OUT_ZERO),
            (torch.uint8, inverse_smooth, scale, zero),
            strict=True,
        ):
            node.update_arg(index, value)
        return
    if is_call(node, gated_act.OP):
        node.args = (*node.args[:2], torch.uint8, inverse_smooth, scale, zero)
        return
    first, second, *others, is_rms = arguments(node, 6)
    if not is_call(node, add_norm.OP):  # a layer_norm: x, its shape, and no residual
        second, is_rms = None, False
    node.target = add_norm.OP
    node.args = (first, second, *others, bool(is_rms), torch.uint8, inverse_smooth, scale, zero)
