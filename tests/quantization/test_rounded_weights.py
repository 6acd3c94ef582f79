"""Weights of 4 bits in groups and as e4m3, the ops over them, and the passes that put these into graphs."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from runtime.backends.plain.table import plain_backend
from runtime.build import copy_graph
from runtime.capture import constant
from runtime.config import Precision, UnusableConfig
from runtime.engines.transfer import to_tensors
from runtime.ops import linear_fp8, linear_weight_only
from runtime.passes.pipeline import PrecisionChoice, list_passes
from runtime.passes.rewriting import LINEAR, is_call, read
from runtime.quantization.e4m3 import quantize_channels
from runtime.quantization.groups import choose_group, quantize_groups
from tests.kernels.kernel_cases import random_tensor
from tests.kernels.tiny_graphs import (
    CPU,
    capture_body,
    capture_made,
    random_batch,
    rewrite,
    run_graph,
    tiny_bert,
    tiny_llama,
)
from tests.quantization.rounded_layers import KINDS
from tests.tolerances import ENCODER_TOLERANCES, check_close, measure_difference

E4M3 = linear_fp8.E4M3


def dequantize(weight: Tensor) -> Tensor:
    grouped = quantize_groups(weight)
    return linear_weight_only.dequantize(grouped.values, grouped.scale, grouped.zero)[:, : weight.shape[1]]


@pytest.mark.parametrize(("depth", "group"), [(4096, 128), (576, 64), (96, 32), (70, 32)])
def test_groups_divide_a_depth_where_they_can(depth: int, group: int) -> None:
    weight = random_tensor(5, depth)
    grouped = quantize_groups(weight)
    assert choose_group(depth) == group == linear_weight_only.find_group(grouped.values, grouped.zero)
    assert grouped.values.shape == (5, -(-depth // group) * group // 2)
    assert measure_difference(dequantize(weight), weight).norm < 0.11


def test_numbers_that_steps_have_stay_as_they_are() -> None:
    """From -5 to 10 steps: the zero point is not in the middle."""
    steps = torch.arange(16).repeat(3, 8) - 5
    weight = steps * torch.tensor([[0.5], [2.0], [1.0]])
    assert torch.equal(dequantize(weight), weight)
    assert not dequantize(torch.zeros(2, 64)).any()


def test_a_group_has_its_own_range() -> None:
    weight = random_tensor(8, 256)
    far = weight.clone()
    far[:, 0] = 1000
    assert torch.equal(dequantize(far)[:, 128:], dequantize(weight)[:, 128:])


def test_ends_are_cut_off_where_that_errs_less() -> None:
    """Steps would be spent on what few numbers reach."""
    weight = random_tensor(16, 128)
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    scale = (high - low) / 15
    plain = ((weight / scale).round() - (low / scale).round()).clamp(0, 15) * scale + (low / scale).round() * scale
    assert measure_difference(dequantize(weight), weight).norm < 0.97 * measure_difference(plain, weight).norm


def test_e4m3_keeps_three_bits_after_the_first() -> None:
    weight = random_tensor(30, 70)
    rounded = quantize_channels(weight)
    assert (
        rounded.values.dtype == E4M3 and rounded.values.shape == (30, 80) and not rounded.values.float()[:, 70:].any()
    )
    found = rounded.values.float()[:, :70] * rounded.scale[:, None]
    assert (rounded.values.float().abs().amax(1) == linear_fp8.MAX_E4M3).all()
    assert ((found - weight).abs() <= weight.abs() / 16 + rounded.scale[:, None] / 512).all()


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("precision", KINDS)
def test_weights_that_are_no_numbers_are_refused_by_name(precision: Precision, number: float) -> None:
    graph_module = capture_body(lambda module, rows, _: module.b(module.a(rows)) + rows)
    graph_module.get_parameter("a.weight").data[3, 5] = number
    with pytest.raises(UnusableConfig, match=rf"precision {precision}: in a\.weight the weights of 1 of 32 .*fp32"):
        round_graph(graph_module, precision)


def round_graph(graph_module: GraphModule, precision: Precision) -> GraphModule:
    """As for a GPU."""
    backend = replace(plain_backend(CPU), keeps_linears=False)
    return rewrite(graph_module, *list_passes(PrecisionChoice(precision, torch.bfloat16, ""), backend))


@pytest.mark.parametrize("precision", KINDS)
def test_an_encoder_by_the_references(precision: Precision) -> None:
    batch = random_batch([5, 1, 9, 30])
    (expected,) = tiny_bert()(**to_tensors(batch, CPU)).values()
    graph_module = round_graph(copy_graph(capture_made(tiny_bert)), precision)
    ops = [str(node.target) for node in graph_module.graph.nodes if "linear" in str(node.target)]
    assert set(ops) == {"padless.linear_fp8.default" if precision == "fp8" else "padless.linear_weight_only.default"}
    assert len(ops) == 8
    check_close(run_graph(graph_module, batch), expected, tolerance=ENCODER_TOLERANCES[precision])


@pytest.mark.parametrize("precision", KINDS)
def test_what_gives_logits_has_8_bits_at_least_and_its_table_16(precision: Precision) -> None:
    """A layer whose weight is a table of tokens, too."""
    graph_module = round_graph(copy_graph(capture_made(tiny_llama)), precision)
    nodes = [node for node in graph_module.graph.nodes if is_call(node, LINEAR, linear_fp8.OP, linear_weight_only.OP)]
    assert len(nodes) == 9
    types = [constant(graph_module, read(node).weight).dtype for node in nodes]
    of_layers = {"fp8": E4M3, "int8_weights": torch.int8, "int4_weights": torch.uint8}[precision]
    assert types == [of_layers] * 8 + [torch.bfloat16 if precision == "fp8" else torch.int8]
    (lookup,) = graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.embedding.default)
    assert constant(graph_module, read(lookup).weight).dtype == torch.bfloat16


def test_layers_that_share_a_weight_share_what_it_becomes() -> None:
    graph_module = round_graph(capture_body(lambda m, x, _: m.a(m.a(x))), "int4_weights")
    first, second = graph_module.graph.find_nodes(op="call_function", target=linear_weight_only.OP)
    assert read(first).weight is read(second).weight and read(first).zero is read(second).zero


def test_sums_and_scales_are_kept_in_fp32() -> None:
    """Biases too; what is added behind a layer the layer adds."""
    graph_module = round_graph(capture_body(lambda m, x, _: m.a(x) + x), "fp8")
    (node,) = graph_module.graph.find_nodes(op="call_function", target=linear_fp8.OP)
    call = read(node)
    assert call.residual is call.x
    assert {constant(graph_module, each).dtype for each in (call.scale, call.bias)} == {torch.float32}
