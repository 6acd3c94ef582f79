"""From an nn.Module over packed tensors to the framework's own graph, symbolic in the shape of the batch."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import sympy
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule, Node

from runtime.batch import INPUTS, ArraySpec
from runtime.engine import Progress
from runtime.kv_cache.layout import KVLayout
from runtime.lazy_module import LazyModule, LazyWeight, as_lazy
from runtime.memory.lifetimes import SYMBOLS, Formula

VARYING = ("num_tokens", "num_seqs", "num_logits", "num_blocks", "max_blocks", "max_source_blocks", "num_weight_rows")
"""The symbols of `INPUTS` that differ from batch to batch, or from engine to engine."""
EXAMPLE_SIZES = {
    "num_tokens": 13,
    "num_seqs": 3,
    "num_logits": 7,
    "num_blocks": 5,
    "max_blocks": 4,
    "max_source_blocks": 6,
    "num_weight_rows": 9,
}
EXAMPLE_MAX_SEQLEN = 6
UNREAD = "unread"
"""In a graph's `meta`: its constants that are still in their files, by name; the graph itself has their shapes."""


def capture(model: nn.Module | LazyModule, device: torch.device) -> GraphModule:
    """Trace a module once, on an example that stands for every batch. Takes seconds for a small model.

    The parameters of its forward are names of `INPUTS`; it returns its outputs by name. Unread weights stay so;
    the module that they are of cannot run afterwards. Raises ValueError where it takes or returns something else.
    """
    lazy = as_lazy(model)
    module = lazy.prepare(device)
    names = list_inputs(module)
    examples = {name: make_example(INPUTS[name], device, count_features(module)) for name in names}
    if isinstance(module, Decodes):
        examples["kv_cache"] = module.kv_layout(torch.float32).allocate(EXAMPLE_SIZES["num_blocks"], device)
    with torch.no_grad():
        program = torch.export.export(
            module, tuple(examples[name] for name in names), dynamic_shapes=dynamic_shapes(names)
        )
    out_spec = program.call_spec.out_spec
    if out_spec is None or out_spec.type is not dict or not all(child.is_leaf() for child in out_spec.children()):
        raise ValueError(f"{type(module).__name__}.forward must return a dict of tensors, its outputs by name")
    # The guards only repeat the ranges below, which start at 2 because torch specialises on 1; nothing depends on it.
    graph_module = program.module(check_guards=False)
    assert isinstance(graph_module, GraphModule)
    graph_module.meta[UNREAD] = dict(lazy.weights)
    return tidy_graph(graph_module, out_spec.context)


def capture_module(model: nn.Module | LazyModule, device: torch.device, progress: Progress) -> GraphModule:
    """As `capture`, with progress."""
    progress("capturing the graph", 0, 1)
    graph_module = capture(model, device)
    progress("capturing the graph", 1, 1)
    return graph_module


@runtime_checkable
class Decodes(Protocol):
    """Decoders say what they keep of each token, and encoders that work for one."""

    def kv_layout(self, dtype: torch.dtype) -> KVLayout: ...


def count_features(module: nn.Module) -> int:
    """Numbers of each row of `features`; 0 of a module that reads token ids."""
    return int(getattr(module, "num_features", 0))


def list_inputs(module: nn.Module) -> list[str]:
    """The parameters of a module's forward, in order. Raises ValueError where one is no input."""
    names = list(inspect.signature(module.forward).parameters)
    unknown = [name for name in names if name not in INPUTS]
    if unknown:
        raise ValueError(
            f"{type(module).__name__}.forward takes {', '.join(unknown)}; an engine has {', '.join(INPUTS)}"
        )
    return names


def dynamic_shapes(names: Iterable[str]) -> dict[str, object]:
    """Which dimensions of each input differ from batch to batch; a number of no dimensions always does."""
    symbols = {name: Dim(name, min=2, max=1 << 30) for name in VARYING}
    return {
        name: {
            place: symbols[symbol] + extra
            for place, (symbol, extra) in enumerate(map(split_dim, INPUTS[name].dims))
            if symbol in VARYING
        }
        if INPUTS[name].dims
        else Dim.DYNAMIC
        for name in names
    }


def split_dim(dim: str | int) -> tuple[str, int]:
    """`num_seqs + 1` as its symbol and what is added; a number has no symbol."""
    symbol, _, extra = str(dim).partition(" + ")
    return ("", int(dim)) if isinstance(dim, int) else (symbol, int(extra or 0))


def make_example(spec: ArraySpec, device: torch.device, num_features: int = 0) -> Tensor | int:
    """Zeros: what an input holds is never looked at. Of a cache nothing: the model makes it."""
    if not spec.dims:
        return EXAMPLE_MAX_SEQLEN
    known = EXAMPLE_SIZES | {"num_features": num_features}
    sizes = [known.get(symbol, 0) + extra for symbol, extra in map(split_dim, spec.dims)]
    return torch.zeros(sizes, dtype=getattr(torch, spec.dtype), device=device)


def tidy_graph(graph_module: GraphModule, output_names: Sequence[str]) -> GraphModule:
    """Drop the assertions torch.export leaves behind: they guard the exporter's assumptions, not our inputs.

    The graph then returns its outputs by name.
    """
    for node in list(graph_module.graph.nodes):
        if node.op == "call_function" and "_assert" in str(node.target):
            graph_module.graph.erase_node(node)
    graph_module.graph.eliminate_dead_code()
    output = graph_module.graph.output_node()
    values = output.args[0]
    assert isinstance(values, (tuple, list)), "The exporter returns a flat tuple. This is a bug."
    output.args = (dict(zip(output_names, values, strict=True)),)
    # A plain Graph without the exporter's calling convention: engines call nodes, never the module.
    graph_module.graph.set_codegen(torch.fx.graph.CodeGen())
    graph_module.recompile()
    return graph_module


def retype_cache(graph_module: GraphModule, layout: KVLayout) -> None:
    """Have the graph know its cache as it will be. Captured was one of fp32, and kernels are told type and strides."""
    for node in graph_module.graph.find_nodes(op="placeholder"):
        if node.name == "kv_cache":
            captured = node.meta["val"]
            dims = (*captured.shape[:-1], *layout.head_shape)
            node.meta["val"] = captured.new_empty(dims, dtype=layout.dtype)


def constant(graph_module: GraphModule, node: Node) -> Tensor:
    """The weight or buffer a get_attr node stands for; one that is unread is read, each time."""
    weight = find_unread(graph_module, node)
    if weight is None:
        return find_attribute(graph_module, node)
    return weight.read().to(node.meta["val"].device)


def find_unread(graph_module: GraphModule, node: Node) -> LazyWeight | None:
    """None for a constant that is in memory."""
    unread: dict[str, LazyWeight] = graph_module.meta[UNREAD]
    return unread.get(str(node.target))


def as_weight(graph_module: GraphModule, node: Node) -> LazyWeight:
    """To make another of, which is read when that is."""
    return find_unread(graph_module, node) or LazyWeight.of(find_attribute(graph_module, node))


def find_attribute(graph_module: GraphModule, node: Node) -> Tensor:
    value: object = graph_module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    assert isinstance(value, Tensor), f"{node.target} is not a tensor. This is a bug."
    return value.detach()


def symbol_names(graph_module: GraphModule) -> dict[str, str]:
    """The exporter's symbols (s27 and the like) by the names of SYMBOLS."""
    found: dict[str, str] = {}
    for node in graph_module.graph.nodes:
        if node.op != "placeholder":
            continue
        value, spec = node.meta["val"], INPUTS[node.name]
        # A cache by rows has two dimensions for the last one of `spec`.
        pairs = zip(value.shape, map(split_dim, spec.dims), strict=False) if spec.dims else [(value, (spec.name, 0))]
        for size, (name, _) in pairs:
            if name in SYMBOLS:
                found |= {str(symbol): name for symbol in sympify(size).free_symbols}
    return found


def find_outputs(graph_module: GraphModule) -> dict[str, Node]:
    """The nodes whose values the graph returns, by name."""
    outputs = graph_module.graph.output_node().args[0]
    assert isinstance(outputs, dict), "A captured graph returns its outputs by name. This is a bug."
    return dict(outputs)


def describe_outputs(graph_module: GraphModule) -> tuple[ArraySpec, ...]:
    """What engines give: fp32, whatever the graph computes in."""
    names = symbol_names(graph_module)
    return tuple(
        ArraySpec(name, "float32", tuple(describe_dim(dim, names) for dim in node.meta["val"].shape))
        for name, node in find_outputs(graph_module).items()
    )


def describe_dim(value: object, names: Mapping[str, str]) -> str | int:
    expression = sympify(value)
    return int(expression) if expression.is_Integer else rename_symbols(str(expression), names)


def is_paged(graph_module: GraphModule) -> bool:
    """Whether the graph keeps keys and values in a cache, so that its batches need `Paging`."""
    return any(node.op == "placeholder" and node.name == "kv_cache" for node in graph_module.graph.nodes)


def find_num_features(graph_module: GraphModule) -> int:
    """Numbers of each row of `features`; 0 of a graph that reads token ids."""
    places = graph_module.graph.find_nodes(op="placeholder")
    return next((int(node.meta["val"].shape[1]) for node in places if node.name == "features"), 0)


def read_inputs(graph_module: GraphModule) -> frozenset[str]:
    """The names of the inputs that something is computed from, or that are outputs themselves."""
    return frozenset(node.name for node in graph_module.graph.nodes if node.op == "placeholder" and node.users)


def sympify(value: object) -> sympy.Expr:
    if isinstance(value, sympy.Expr):
        return value
    expression = value.node.expr if isinstance(value, torch.SymInt) else sympy.Integer(value)
    assert isinstance(expression, sympy.Expr)
    return expression


def to_formula(value: object, names: Mapping[str, str]) -> Formula:
    """A dimension of a traced tensor as a polynomial of SYMBOLS. Raises ValueError where it is none.

    Negative and broken coefficients are refused too: a larger batch must never need a smaller tensor.
    """
    expression = sympify(value)
    symbols = [sympy.Symbol(name) for name in SYMBOLS]
    unknown = [str(symbol) for symbol in expression.free_symbols if str(symbol) not in names]
    if unknown:
        raise ValueError(f"{expression} depends on {', '.join(unknown)}, which no batch tells")
    renamed = expression.subs({symbol: sympy.Symbol(names[str(symbol)]) for symbol in expression.free_symbols})
    try:
        terms = sympy.Poly(renamed, *symbols).terms()
    except sympy.PolynomialError:
        raise ValueError(f"{rename_symbols(str(expression), names)} is not a polynomial") from None
    if any(coefficient < 0 or not coefficient.is_integer for _, coefficient in terms):
        raise ValueError(f"{rename_symbols(str(expression), names)} may shrink as a batch grows")
    return Formula(tuple((int(coefficient), *powers) for powers, coefficient in terms if coefficient))


def rename_symbols(text: str, names: Mapping[str, str]) -> str:
    return re.sub(r"\bs\d+\b", lambda match: names.get(match[0], match[0]), text)
