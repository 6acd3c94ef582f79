"""From an nn.Module over packed tensors to the framework's own graph, symbolic in the shape of the batch."""

import re
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import sympy
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule, Node
from torch.nn import functional

from runtime.kv_cache.layout import KVLayout
from runtime.memory.lifetimes import BatchShape, Formula

ENCODER_INPUTS = ("input_ids", "position_ids", "token_type_ids", "cu_seqlens", "max_seqlen")
DECODER_INPUTS = (
    *("input_ids", "position_ids", "cu_seqlens", "max_seqlen"),
    *("slot_mapping", "block_table", "cache_seqlens", "logit_rows", "kv_cache"),
)
"""The arguments of a model's forward, in order: those of `Batch`, and the memory of its cache."""

EXAMPLE_SEQLENS = (3, 4, 6)
EXAMPLE_BLOCKS, EXAMPLE_LOGITS = 5, 7


def capture(module: nn.Module, device: torch.device) -> GraphModule:
    """Trace `module` once, on an example that stands for every batch. Takes seconds for a small model."""
    examples, shapes = example_inputs(device), dynamic_shapes()
    names: tuple[str, ...] = ENCODER_INPUTS
    if isinstance(module, Decodes):
        names = DECODER_INPUTS
        examples["kv_cache"] = module.kv_layout(torch.float32).allocate(EXAMPLE_BLOCKS, device)
    with torch.no_grad():
        program = torch.export.export(
            module, tuple(examples[name] for name in names), dynamic_shapes={name: shapes[name] for name in names}
        )
    # The guards only repeat the ranges below, which start at 2 because torch specialises on 1; nothing depends on it.
    graph_module = program.module(check_guards=False)
    assert isinstance(graph_module, GraphModule)
    return tidy_graph(graph_module)


@runtime_checkable
class Decodes(Protocol):
    """Decoders say what they keep of each token."""

    def kv_layout(self, dtype: torch.dtype) -> KVLayout: ...


def dynamic_shapes() -> dict[str, object]:
    """Which dimensions of each input differ from batch to batch."""
    most = 1 << 30
    num_tokens, num_seqs, num_logits = (Dim(name, min=2, max=most) for name in ("num_tokens", "num_seqs", "num_logits"))
    num_blocks, max_blocks = Dim("num_blocks", min=2, max=most), Dim("max_blocks", min=2, max=most)
    per_token = {name: {0: num_tokens} for name in ("input_ids", "position_ids", "token_type_ids", "slot_mapping")}
    return {
        **per_token,
        "cu_seqlens": {0: num_seqs + 1},
        "max_seqlen": Dim.DYNAMIC,
        "block_table": {0: num_seqs, 1: max_blocks},
        "cache_seqlens": {0: num_seqs},
        "logit_rows": {0: num_logits},
        "kv_cache": {1: num_blocks},
    }


def example_inputs(device: torch.device) -> dict[str, Any]:
    """All but the cache, whose shape is the model's."""
    position_ids = torch.cat([torch.arange(seqlen) for seqlen in EXAMPLE_SEQLENS]).to(device)
    seqlens = torch.tensor(EXAMPLE_SEQLENS, dtype=torch.int32, device=device)
    ids = torch.zeros_like(position_ids)
    return {
        "input_ids": ids,
        "position_ids": position_ids,
        "token_type_ids": ids.clone(),
        "cu_seqlens": functional.pad(seqlens.cumsum(0, dtype=torch.int32), (1, 0)),
        "max_seqlen": max(EXAMPLE_SEQLENS),
        "slot_mapping": torch.arange(len(ids), device=device),
        "block_table": torch.zeros(len(seqlens), EXAMPLE_BLOCKS - 1, dtype=torch.int32, device=device),
        "cache_seqlens": seqlens,
        "logit_rows": torch.zeros(EXAMPLE_LOGITS, dtype=torch.int64, device=device),
    }


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
    found = {"max_seqlen": values["max_seqlen"], "num_tokens": values["input_ids"].shape[0]}
    found["num_seqs"] = values["cu_seqlens"].shape[0]
    if "logit_rows" in values:
        found["num_logits"] = values["logit_rows"].shape[0]
    return {str(symbol): name for name, value in found.items() for symbol in sympify(value).free_symbols}


def sympify(value: object) -> sympy.Expr:
    expression = value.node.expr if isinstance(value, torch.SymInt) else sympy.Integer(value)
    assert isinstance(expression, sympy.Expr)
    return expression


def to_formula(value: object, names: Mapping[str, str]) -> Formula:
    """A dimension of a traced tensor as a polynomial of the batch's shape. Raises ValueError where it is none.

    Negative and broken coefficients are refused too: a larger batch must never need a smaller tensor.
    """
    expression = sympify(value)
    symbols = [sympy.Symbol(name) for name in BatchShape._fields]
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
