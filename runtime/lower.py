"""From a captured and rewritten graph to a program: roots numbered, shapes as formulas, and when each tensor dies."""

import operator
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from runtime.backends.plain.table import TORCH_KERNELS, VIEW_OPS
from runtime.capture import (
    constant,
    describe_outputs,
    find_num_features,
    find_outputs,
    symbol_names,
    sympify,
    to_formula,
)
from runtime.memory.lifetimes import Formula, TensorLife
from runtime.program import NUM_SHAPE, Instruction, Program, sum_weights
from runtime.values import Late, View

aten = torch.ops.aten


def lower(graph_module: GraphModule, kernels: Container[object] = TORCH_KERNELS) -> Program:
    """Number the roots, and find when each tensor dies. Planned is what there are `kernels` for."""
    return Lowering(graph_module, kernels, symbol_names(graph_module)).lower()


@dataclass(slots=True)
class Lowering:
    """One run of `lower`. Mutable: what has been found of each node so far."""

    graph_module: GraphModule
    kernels: Container[object]
    names: dict[str, str]
    values: dict[Node, Any] = field(default_factory=dict)
    """Views, Formulas, Late."""
    constants: dict[int, Tensor] = field(default_factory=dict)
    inputs: dict[str, int] = field(default_factory=dict)
    formulas: dict[sympy.Expr, Formula | None] = field(default_factory=dict)
    """Of the few sizes that all tensors have; None for what is no formula."""
    num_roots: int = 0

    def lower(self) -> Program:
        nodes = list(self.graph_module.graph.nodes)
        steps = [node for node in nodes if self.find_value(node)]
        outputs = find_outputs(self.graph_module)
        step_of = {node: index for index, node in enumerate(steps)}
        calls = [node for node in nodes if node.op == "call_function"]
        deaths = find_deaths(calls, step_of, outputs.values())
        dead_after: dict[int, list[int]] = {}
        for node in steps:
            dead_after.setdefault(deaths[node], []).append(self.values[node].root)
        return Program(
            instructions=tuple(self.lower_call(node, step_of[node], deaths[node], dead_after) for node in steps),
            num_roots=self.num_roots,
            constants=self.constants,
            inputs=self.inputs,
            input_dtypes={node.name: node.meta["val"].dtype for node in nodes if is_array(node)},
            outputs_by_name={name: self.values[node] for name, node in outputs.items()},
            weight_bytes=sum_weights(self.constants.values()),
            outputs=describe_outputs(self.graph_module),
            read_inputs=frozenset(node.name for node in nodes if node.op == "placeholder" and is_read(node)),
            num_features=find_num_features(self.graph_module),
        )

    def find_value(self, node: Node) -> bool:
        """Note what the node gives; whether an instruction has to compute it."""
        if node.op not in ("placeholder", "get_attr", "call_function"):
            return False
        value = node.meta["val"]
        if not isinstance(value, Tensor):
            formula = self.to_formulas([value]) if isinstance(value, int | torch.SymInt) else None
            if node.op == "placeholder":
                self.inputs[node.name] = self.new_root()
            self.values[node] = formula[0] if formula else Late(self.new_root())
            return formula is None
        if node.op == "call_function" and is_view(node):
            view = self.find_view(node)
            self.values[node] = view or Late(self.new_root())
            return view is None
        root = self.new_root()
        self.values[node] = self.new_view(root, value) or Late(root)
        if node.op == "placeholder":
            self.inputs[node.name] = root
        elif node.op == "get_attr":
            self.constants[root] = constant(self.graph_module, node)
        return node.op == "call_function"

    def find_view(self, node: Node) -> View | None:
        """A node's result as a view of its first argument's root; None where it can only be found in the step."""
        source = node.args[0]
        assert isinstance(source, Node)
        seen, base, value = self.values[source], source.meta["val"], node.meta["val"]
        if not isinstance(seen, View):
            return None
        found = self.new_view(seen.root, value)
        moved = self.to_formulas([sympify(value.storage_offset()) - sympify(base.storage_offset())])
        if found is None or moved is None:
            return None
        return View(seen.root, value.dtype, found.dims, found.strides, seen.offset.plus(moved[0]))

    def new_view(self, root: int, value: Tensor) -> View | None:
        """All of a tensor; None where its shape is no formula."""
        dims, strides = self.to_formulas(value.shape), self.to_formulas(value.stride())
        if dims is None or strides is None:
            return None
        return View(root, value.dtype, dims, strides, Formula.constant(0))

    def to_formulas(self, numbers: Sequence[object]) -> tuple[Formula, ...] | None:
        found = [self.find_formula(sympify(number)) for number in numbers]
        return None if None in found else tuple(formula for formula in found if formula is not None)

    def find_formula(self, number: sympy.Expr) -> Formula | None:
        if number not in self.formulas:
            try:
                self.formulas[number] = to_formula(number, self.names)
            except ValueError:
                self.formulas[number] = None
        return self.formulas[number]

    def lower_call(self, node: Node, step: int, death: int, dead_after: Mapping[int, Sequence[int]]) -> Instruction:
        value, frees = node.meta["val"], tuple(dead_after.get(step, ()))
        # No Node may be kept: it would keep the graph, and with it every weight that a pass has replaced.
        args, kwargs = torch.fx.map_arg((node.args, dict(node.kwargs)), self.values.__getitem__)
        out = self.values[node]
        view = out if isinstance(out, View) else None
        target: Any = node.target
        if is_view(node) or not isinstance(value, Tensor):
            kind = "view" if isinstance(value, Tensor) else "scalar"
            return Instruction(node.name, kind, target, args, kwargs, out.root, None, frees)
        life = find_life(node.name, step, death, view)
        is_planned = target in self.kernels and life is not None and value.is_contiguous()
        kind = "planned" if is_planned else "unplanned"
        return Instruction(node.name, kind, target, args, kwargs, out.root, view, frees, life)

    def new_root(self) -> int:
        self.num_roots += 1
        return self.num_roots - 1


def find_life(name: str, step: int, death: int, view: View | None) -> TensorLife | None:
    """None where the planner could not know the size."""
    if view is None:
        return None
    num_bytes = count_dims(view.dims, view.dtype)
    if any(any(powers[NUM_SHAPE:]) for _, *powers in num_bytes.terms):
        return None
    return TensorLife(name, step, death, num_bytes)


def is_array(node: Node) -> bool:
    return node.op == "placeholder" and isinstance(node.meta["val"], Tensor)


def is_read(node: Node) -> bool:
    """Whether anything is computed from an input, or it is given back. Asking for its size reads nothing of it."""
    return any(user.target is not aten.sym_size.int for user in node.users)


def count_dims(dims: Sequence[Formula], dtype: torch.dtype) -> Formula:
    """Bytes of a tensor of this shape."""
    num_bytes = Formula.constant(dtype.itemsize)
    for dim in dims:
        num_bytes = num_bytes.times(dim)
    return num_bytes


def is_view(node: Node) -> bool:
    """Whether the result shares memory with the first argument, by torch's own account of the shapes' strides."""
    if node.target not in VIEW_OPS:
        return False
    if node.target not in (aten.reshape.default, aten.flatten.using_ints):
        return True
    source = node.args[0]
    return isinstance(source, Node) and source.meta["val"].is_contiguous()


def may_share_memory(node: Node) -> bool:
    """Whether the result can be, or lie in, an argument's memory: views, and ops that copy only if they must.

    `reshape`, `contiguous` and `to` declare it in their schemas; `dropout` and `type_as` return their input unsaid.
    """
    if node.target in (operator.getitem, aten.dropout.default, aten.type_as.default):
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(argument.alias_info is not None for argument in schema.arguments)


def find_deaths(calls: Sequence[Node], step_of: Mapping[Node, int], outputs: Iterable[Node]) -> dict[Node, int]:
    """For each call the last step that reads its memory, under whatever name; outputs outlive all steps.

    Calls that are no steps read nothing themselves, but others may read through them.
    """
    kept = set(outputs)
    deaths: dict[Node, int] = {}
    for node in reversed(calls):
        last = step_of.get(node, -1)
        for user in node.users:
            if user in deaths:
                last = max(last, deaths[user] if may_share_memory(user) else step_of.get(user, -1))
        deaths[node] = len(step_of) if node in kept else last
    return deaths
