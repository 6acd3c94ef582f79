"""From an nn.Module over packed tensors to the framework's own graph, symbolic in the shape of the batch."""

import re
from collections.abc import Mapping

import sympy
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule, Node

from runtime.memory.lifetimes import Formula

INPUT_NAMES = ("input_ids", "position_ids", "token_type_ids", "cu_seqlens", "max_seqlen")
"""The arguments of every model's forward, in order: those of `Batch`."""

EXAMPLE_SEQLENS = (3, 4, 6)


def capture(module: nn.Module, device: torch.device) -> GraphModule:
    """Trace `module` once, on an example that stands for every batch. Takes seconds for a small model."""
    num_tokens, num_seqs = Dim("num_tokens", min=2, max=1 << 30), Dim("num_seqs", min=2, max=1 << 30)
    per_token = {name: {0: num_tokens} for name in INPUT_NAMES[:3]}
    shapes = {**per_token, "cu_seqlens": {0: num_seqs + 1}, "max_seqlen": Dim.DYNAMIC}
    with torch.no_grad():
        program = torch.export.export(module, example_inputs(device), dynamic_shapes=shapes)
    # The guards only repeat the ranges above, which start at 2 because torch specialises on 1; nothing depends on it.
    graph_module = program.module(check_guards=False)
    assert isinstance(graph_module, GraphModule)
    return tidy_graph(graph_module)


def example_inputs(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    position_ids = torch.cat([torch.arange(seqlen) for seqlen in EXAMPLE_SEQLENS]).to(device)
    cu_seqlens = torch.tensor([0, *EXAMPLE_SEQLENS]).cumsum(0).to(device, torch.int32)
    ids = torch.zeros_like(position_ids)
    return ids, position_ids, ids.clone(), cu_seqlens, max(EXAMPLE_SEQLENS)


def tidy_graph(graph_module: GraphModule) -> GraphModule:
    """Drop the assertions torch.export leaves behind: they guard the exporter's assumptions, not our inputs."""
    for node in list(graph_module.graph.nodes):
        if node.op == "call_function" and "_assert" in str(node.target):
            graph_module.graph.erase_node(node)
    graph_module.graph.eliminate_dead_code()
    # A plain Graph without the exporter's calling convention: engines call nodes, never the module.
    graph_module.graph.set_codegen(torch.fx.graph.CodeGen())
    graph_module.recompile()
    return graph_module


def constant(graph_module: GraphModule, node: Node) -> Tensor:
    """The weight or buffer a get_attr node stands for."""
    value: object = graph_module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    assert isinstance(value, Tensor), f"{node.target} is not a tensor. This is a bug."
    return value


def symbol_names(graph_module: GraphModule) -> dict[str, str]:
    """The exporter's symbols (s27 and the like) by the names of the design."""
    values = {node.name: node.meta["val"] for node in graph_module.graph.nodes if node.op == "placeholder"}
    names = {str(values["max_seqlen"]): "max_seqlen", str(values["input_ids"].shape[0]): "num_tokens"}
    for symbol in sympify(values["cu_seqlens"].shape[0]).free_symbols:
        names[str(symbol)] = "num_seqs"
    return names


def sympify(value: object) -> sympy.Expr:
    expression = value.node.expr if isinstance(value, torch.SymInt) else sympy.Integer(value)
    assert isinstance(expression, sympy.Expr)
    return expression


def to_formula(value: object, names: Mapping[str, str]) -> Formula:
    """A dimension of a traced tensor as a polynomial of the batch's shape. Raises ValueError where it is none.

    Negative and broken coefficients are refused too: a larger batch must never need a smaller tensor.
    """
    order = ("num_tokens", "num_seqs", "max_seqlen")
    expression = sympify(value)
    symbols = [sympy.Symbol(name) for name in order]
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
