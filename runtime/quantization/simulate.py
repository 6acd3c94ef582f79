"""INT8 without its kernels: the fused fp32 graph, node by node, with linears and experts that round as integer ops do.

Slow and allocating, for calibration and tests only. Sums of whole numbers in fp32 are exact up to 2**24 and not far off
beyond, so what differs from the op is the last bits.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from runtime.batch import Batch
from runtime.capture import UNREAD, as_weight, find_num_features, is_paged, read_inputs
from runtime.engine import Progress
from runtime.engines.transfer import take_arrays, to_tensors
from runtime.lazy_module import LazyWeight
from runtime.ops import experts, linear_act
from runtime.passes.rewriting import LINEAR, find_device, find_head, is_call, read, read_linear
from runtime.quantization.scheme import LinearScheme
from runtime.quantization.weights import QuantizedWeight, quantize_weight, stack_weights

ACTIVATION_STEPS = 255

Compute = Callable[[str, Tensor, Tensor, Tensor | None], Tensor]
"""(weight's name, x [num_rows, in_features], weight, bias) -> [num_rows, out_features], before any activation."""


def find_linears(graph_module: GraphModule) -> dict[str, list[Node]]:
    """The linears that may be quantised, by their weight's name; a weight that layers share has several.

    Those of a head stay as they are: they cost little, and their rounding nothing averages out.
    """
    head = find_head(graph_module)
    linears: dict[str, list[Node]] = {}
    for node in graph_module.graph.nodes:
        if is_call(node, LINEAR, linear_act.OP) and node not in head and len(node.meta["val"].shape) == 2:
            linears.setdefault(weight_name(node), []).append(node)
    return linears


def find_last(linears: Mapping[str, Sequence[Node]], head: Container[Node]) -> set[str]:
    """The weights of those that a head alone reads, as the logits of generators do: nothing averages out how they are
    rounded."""
    return {name for name, nodes in linears.items() if all(user in head for node in nodes for user in node.users)}


def weight_name(linear: Node) -> str:
    """Of the constant, as the graph calls it."""
    return str(read_linear(linear).weight.target)


def find_experts(graph_module: GraphModule) -> dict[str, Node]:
    """The blocks of experts, by the name of their weight `up`. Their routers are never quantised."""
    nodes = [node for node in graph_module.graph.nodes if is_call(node, experts.OP)]
    return {str(read(node).up.target): node for node in nodes}


def list_weights(graph_module: GraphModule) -> dict[str, LazyWeight]:
    """All that may be quantised: what a model's fingerprint is taken of."""
    parts = [part for node in find_experts(graph_module).values() for part in (read(node).up, read(node).down)]
    return linear_weights(graph_module) | {str(part.target): as_weight(graph_module, part) for part in parts}


def linear_weights(graph_module: GraphModule) -> dict[str, LazyWeight]:
    """The fp32 weights [out_features, in_features] of `find_linears`."""
    return {
        name: as_weight(graph_module, read_linear(nodes[0]).weight)
        for name, nodes in find_linears(graph_module).items()
    }


@dataclass(frozen=True, slots=True)
class SimulatedExperts:
    """The weights of a block of experts as the integer op has them."""

    up: QuantizedWeight
    down: QuantizedWeight

    def __call__(self, x: Tensor, router: Tensor, top_k: int, act: str, is_gated: bool, renormalize: bool) -> Tensor:
        """As `padless::experts` has it."""
        weights, scales = (self.up.values, self.down.values), (self.up.scale, self.down.scale)
        return experts.experts(x, router, *weights, top_k, act, is_gated, renormalize, *scales)


NO_EXPERTS: Mapping[str, SimulatedExperts] = MappingProxyType({})


class LinearInterpreter(Interpreter):
    """Runs a graph with `compute` in place of its quantisable linears, and with `rounded` in place of the experts of
    these names. Weights are read for the ops that use them."""

    def __init__(self, graph_module: GraphModule, compute: Compute, rounded: Mapping[str, SimulatedExperts]):
        super().__init__(graph_module)
        self.compute = compute
        self.rounded = {node: rounded[name] for name, node in find_experts(graph_module).items() if name in rounded}
        self.unread: Mapping[str, LazyWeight] = graph_module.meta[UNREAD]
        self.device = find_device(graph_module)
        self.linears = {node for nodes in find_linears(graph_module).values() for node in nodes}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """What is unread stands for itself until an op takes it."""
        return self.unread.get(target) or super().get_attr(target, args, kwargs)

    def fetch_args_kwargs_from_env(self, n: Node) -> Any:
        return self.read_weights(super().fetch_args_kwargs_from_env(n))

    def read_weights(self, values: Any) -> Any:
        return tree_map_only(LazyWeight, lambda weight: weight.read().to(self.device), values)

    def run_node(self, n: Node) -> Any:
        if n in self.rounded:
            (x, router, _, _, *settings), _ = super().fetch_args_kwargs_from_env(n)
            return self.rounded[n](x, self.read_weights(router), *settings)
        if n not in self.linears:
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        x, weight, bias = (*args, None)[:3]
        act = str(args[3]) if n.target is linear_act.OP else "none"
        assert isinstance(x, Tensor) and isinstance(weight, Tensor)
        result = self.compute(weight_name(n), x, weight, bias)
        return linear_act.ACTIVATIONS[act](result)


def run_batches(
    graph_module: GraphModule,
    batches: Sequence[Batch],
    compute: Compute,
    progress: Progress,
    what: str,
    rounded: Mapping[str, SimulatedExperts] = NO_EXPERTS,
) -> Tensor:
    """The graph's first output for all batches in their order, fp32 [num_rows of all, ...].

    It is the one that accuracy is measured on: what else a graph gives comes from the same rows.
    """
    interpreter = LinearInterpreter(graph_module, compute, rounded)
    device = find_device(graph_module)
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    read, memory = read_inputs(graph_module), allocate_cache(graph_module, batches, device)
    rows = []
    with torch.inference_mode():
        for index, batch in enumerate(batches):
            progress(what, index, len(batches))
            take_arrays(batch, read, find_num_features(graph_module))
            inputs = to_tensors(batch, device) | memory
            outputs = interpreter.run(*(inputs.get(node.name) for node in placeholders))
            rows.append(next(iter(outputs.values())).float().cpu())
    progress(what, len(batches), len(batches))
    return torch.cat(rows)


def allocate_cache(graph_module: GraphModule, batches: Sequence[Batch], device: torch.device) -> dict[str, Tensor]:
    """What a decoder needs to run these batches, one after the other, by its input's name; nothing for encoders."""
    if not is_paged(graph_module):
        return {}
    used = [int(batch.paging.block_table.max()) for batch in batches if batch.paging is not None]
    (cache,) = (node for node in graph_module.graph.nodes if node.name == "kv_cache")
    num_layers, _, *rest = cache.meta["val"].shape
    return {"kv_cache": torch.zeros(num_layers, max(used) + 1, *rest, device=device)}


def compute_float(name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.linear(x, weight, bias)


@dataclass(frozen=True, slots=True)
class SimulatedLinear:
    """One linear as the integer op computes it, without its bias.

    `values`: whole numbers in fp32 [out_features, in_features]. `scale`: fp32 [out_features].
    """

    values: Tensor
    scale: Tensor
    scheme: LinearScheme

    def __call__(self, x: Tensor) -> Tensor:
        """[num_rows, in_features] -> [num_rows, out_features]"""
        if self.scheme.smooth is not None:
            x = x / self.scheme.smooth
        levels, step = quantize_rows(x, self.scheme.static_range)
        return functional.linear(levels, self.values) * (step * self.scale)


def simulate_linear(weight: Tensor, scheme: LinearScheme, *, overflow_free: bool) -> SimulatedLinear:
    quantized = quantize_weight(weight, scheme=scheme, overflow_free=overflow_free)
    return SimulatedLinear(quantized.values.float(), quantized.scale, scheme)


def simulate_experts(graph_module: GraphModule, *, overflow_free: bool) -> dict[str, SimulatedExperts]:
    """All of them, by name. Raises ValueError as `quantize_weight` does."""

    def round_all(weight: Node) -> QuantizedWeight:
        matrices = as_weight(graph_module, weight).read()
        return stack_weights([quantize_weight(each, scheme=None, overflow_free=overflow_free) for each in matrices])

    found = find_experts(graph_module)
    return {
        name: SimulatedExperts(round_all(read(node).up), round_all(read(node).down)) for name, node in found.items()
    }


def quantize_rows(x: Tensor, static_range: tuple[float, float] | None) -> tuple[Tensor, Tensor]:
    """x [num_rows, n] as whole numbers less their zero point, and the step [num_rows, 1]: x is about their product.

    256 levels from the least to the largest of each row, or of `static_range`; 0 is always one of them.
    """
    if static_range is None:
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    else:
        low, high = x.new_full((1, 1), static_range[0]), x.new_full((1, 1), static_range[1])
    low, high = low.clamp(max=0), high.clamp(min=0)
    step = (high - low) / ACTIVATION_STEPS
    step = torch.where(step > 0, step, 1.0)
    zero = (-low / step).round()
    return ((x / step).round() + zero).clamp(0, ACTIVATION_STEPS) - zero, step


def replace_linears(linears: Mapping[str, SimulatedLinear]) -> Compute:
    """What `run_batches` needs to run these linears in INT8, and the others in fp32."""

    def compute(name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if name not in linears:
            return functional.linear(x, weight, bias)
        result = linears[name](x)
        return result if bias is None else result + bias

    return compute
