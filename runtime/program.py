"""A captured and rewritten graph as a list of steps over numbered slots: what the planned engine executes.

Each step computes one slot by one of three means: into a place the arena gives it, as a view of another slot, or, for
ops without a kernel in `runtime.kernels.table`, by letting torch allocate. Only the first kind is planned.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from runtime.capture import INPUT_NAMES, constant, symbol_names, to_formula
from runtime.kernels.table import OUT_KERNELS, VIEW_OPS
from runtime.memory.lifetimes import BatchShape, Formula, Lifetime, TensorLife, size_lifetimes

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """An intermediate that lives in the arena. `dims` are its shape; it is contiguous."""

    slot: int
    dims: tuple[Formula, ...]
    dtype: torch.dtype
    life: TensorLife


@dataclass(frozen=True, slots=True)
class Step:
    """`run(*[slots[i] for i in args])` fills `slot`; where `tensor` is set, it is given that place as `out`."""

    name: str
    kind: str
    """planned, view, scalar or unplanned."""
    run: Callable[..., object]
    args: tuple[int, ...]
    slot: int
    tensor: PlannedTensor | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """`slots` holds constants and literals where they belong and None elsewhere; inputs go to `input_slots`."""

    steps: tuple[Step, ...]
    slots: tuple[object, ...]
    input_slots: tuple[int, ...]
    output_slot: int
    tensors: tuple[PlannedTensor, ...]
    weight_bytes: int
    output_dim: int

    @property
    def unplanned(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.kind == "unplanned")

    def lifetimes(self, shape: BatchShape) -> list[Lifetime]:
        return size_lifetimes((tensor.life for tensor in self.tensors), shape)


def lower(graph_module: GraphModule) -> Program:
    """Number the slots, bind each node to its kernel, and find when each tensor dies."""
    return Lowering(graph_module, symbol_names(graph_module)).lower()


@dataclass(slots=True)
class Lowering:
    """One run of `lower`. Mutable: `slots` and `slot_of`, which grow node by node."""

    graph_module: GraphModule
    names: dict[str, str]
    slots: list[object] = field(default_factory=list)
    slot_of: dict[Node, int] = field(default_factory=dict)

    def lower(self) -> Program:
        calls = [node for node in self.graph_module.graph.nodes if node.op == "call_function"]
        step_of = {node: index for index, node in enumerate(calls)}
        deaths = find_deaths(calls, step_of, self.output_node())
        weights: dict[int, int] = {}
        inputs = [0] * len(INPUT_NAMES)
        steps = []
        for node in self.graph_module.graph.nodes:
            if node.op == "placeholder":
                inputs[INPUT_NAMES.index(node.name)] = self.new_slot(node)
            elif node.op == "get_attr":
                value = constant(self.graph_module, node).detach()
                weights[id(value) if value.is_mkldnn else value.untyped_storage().data_ptr()] = count_bytes(value)
                self.slots[self.new_slot(node)] = value
            elif node.op == "call_function":
                steps.append(self.lower_call(node, step_of[node], deaths[node]))
        output = self.output_node()
        return Program(
            steps=tuple(steps),
            slots=tuple(self.slots),
            input_slots=tuple(inputs),
            output_slot=self.slot_of[output],
            tensors=tuple(step.tensor for step in steps if step.tensor is not None),
            weight_bytes=sum(weights.values()),
            output_dim=int(output.meta["val"].shape[-1]),
        )

    def output_node(self) -> Node:
        result = self.graph_module.graph.output_node().args[0]
        while isinstance(result, (tuple, list)):
            result = result[0]
        assert isinstance(result, Node)
        return result

    def lower_call(self, node: Node, step: int, death: int) -> Step:
        name = node.name
        if is_view(node):
            run, args = self.bind(node, node.target)
            return Step(name, "view", run, args, self.new_slot(node))
        if not isinstance(node.meta["val"], Tensor):
            run, args = self.bind(node, node.target)
            return Step(name, "scalar", run, args, self.new_slot(node))
        kernel = OUT_KERNELS.get(node.target)
        dims = self.dims_of(node)
        if kernel is None or dims is None:
            run, args = self.bind(node, node.target)
            return Step(name, "unplanned", run, args, self.new_slot(node))
        run, args = self.bind(node, kernel)
        dtype = node.meta["val"].dtype
        num_bytes = Formula.constant(dtype.itemsize)
        for dim in dims:
            num_bytes = num_bytes.times(dim)
        slot = self.new_slot(node)
        tensor = PlannedTensor(slot, dims, dtype, TensorLife(name, step, death, num_bytes))
        return Step(name, "planned", run, args, slot, tensor)

    def dims_of(self, node: Node) -> tuple[Formula, ...] | None:
        """The shape as formulas; None where it is no polynomial of the batch's shape."""
        try:
            return tuple(to_formula(dim, self.names) for dim in node.meta["val"].shape)
        except ValueError:
            return None

    def bind(self, node: Node, target: object) -> tuple[Callable[..., object], tuple[int, ...]]:
        """The callable and its argument slots. Keywords and lists of tensors are folded into a closure."""
        assert callable(target)
        if not node.kwargs and not any(holds_node(arg) for arg in node.args):
            return target, tuple(self.slot_for(arg) for arg in node.args)
        inner = node.all_input_nodes

        def call(*values: object, **out: object) -> object:
            given: dict[Node, Any] = dict(zip(inner, values, strict=True))
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), given.__getitem__)
            return target(*args, **kwargs, **out)

        return call, tuple(self.slot_of[arg] for arg in inner)

    def slot_for(self, arg: object) -> int:
        if isinstance(arg, Node):
            return self.slot_of[arg]
        self.slots.append(arg)
        return len(self.slots) - 1

    def new_slot(self, node: Node) -> int:
        self.slots.append(None)
        self.slot_of[node] = len(self.slots) - 1
        return self.slot_of[node]


def holds_node(arg: object) -> bool:
    return isinstance(arg, (list, tuple)) and any(isinstance(item, Node) for item in arg)


def count_bytes(value: Tensor) -> int:
    return value.numel() * value.element_size() if value.is_mkldnn else value.untyped_storage().nbytes()


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


def find_deaths(calls: Sequence[Node], step_of: dict[Node, int], output: Node) -> dict[Node, int]:
    """For each call the last step that reads its memory, under whatever name; the output outlives all steps."""
    deaths: dict[Node, int] = {}
    for node in reversed(calls):
        last = step_of[node]
        for user in node.users:
            if user in step_of:
                last = max(last, deaths[user] if may_share_memory(user) else step_of[user])
        deaths[node] = len(calls) if node is output else last
    return deaths
