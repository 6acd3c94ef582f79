"""A captured and rewritten graph as a list of instructions over numbered slots: what the planned engine executes.

Each instruction fills one slot by one of three means: into a place the arena gives it, as a view of another slot, or,
for ops without a kernel in `runtime.kernels.table`, by letting torch allocate. Only the first kind is planned; the last
is counted, and freed after its last use.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from runtime.batch import ArraySpec
from runtime.capture import constant, describe_outputs, find_outputs, symbol_names, to_formula
from runtime.kernels.cpu.native import NativeKernel
from runtime.kernels.table import TORCH_KERNELS, VIEW_OPS, Kernel
from runtime.memory.lifetimes import BatchShape, Formula, Lifetime, TensorLife, live_peak, size_lifetimes

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """An intermediate that lives in the arena. `dims` are its shape; it is contiguous."""

    slot: int
    dims: tuple[Formula, ...]
    dtype: torch.dtype
    life: TensorLife


@dataclass(frozen=True, slots=True)
class Slot:
    """Stands for a slot's value inside the arguments of a call."""

    index: int


@dataclass(frozen=True, slots=True)
class Instruction:
    """`run(*[slots[i] for i in args])` fills `slot`; where `tensor` is set, it is given that place as `out`.

    Afterwards nobody reads the slots in `frees` any more.
    """

    name: str
    kind: str
    """planned, view, scalar or unplanned."""
    run: Callable[..., object]
    args: tuple[int, ...]
    slot: int
    frees: tuple[int, ...]
    tensor: PlannedTensor | None = None
    life: TensorLife | None = None
    """Of results that are not views, planned or not; None where the size is no formula of the batch's shape."""


@dataclass(frozen=True, slots=True)
class Program:
    """`slots` holds constants and literals where they belong and None elsewhere; inputs go to `input_slots`."""

    instructions: tuple[Instruction, ...]
    slots: tuple[object, ...]
    input_slots: dict[str, int]
    """By the name of the argument; those that nothing reads are there too."""
    output_slots: dict[str, int]
    """By the name of the output."""
    tensors: tuple[PlannedTensor, ...]
    weight_bytes: int
    outputs: tuple[ArraySpec, ...]

    @property
    def unplanned(self) -> tuple[Instruction, ...]:
        return tuple(instruction for instruction in self.instructions if instruction.kind == "unplanned")

    @property
    def is_used(self) -> BatchShape:
        """Which numbers of a BatchShape any size depends on: 1, else 0."""
        powers = [term[1:] for tensor in self.tensors for term in tensor.life.num_bytes.terms]
        return BatchShape(*(int(any(column)) for column in zip_longest(*powers, (0,) * 4, fillvalue=0)))

    @property
    def read_inputs(self) -> frozenset[str]:
        """The inputs that any instruction reads."""
        read = {slot for instruction in self.instructions for slot in instruction.args} | {*self.output_slots.values()}
        return frozenset(name for name, slot in self.input_slots.items() if slot in read)

    def lifetimes(self, shape: BatchShape) -> list[Lifetime]:
        return size_lifetimes((tensor.life for tensor in self.tensors), shape)

    def unplanned_bytes(self, shape: BatchShape) -> int:
        """What torch allocates beside the arena at most at one time."""
        lives = [instruction.life for instruction in self.unplanned if instruction.life is not None]
        return live_peak(size_lifetimes(lives, shape))


def lower(graph_module: GraphModule, kernels: Mapping[object, Kernel] = TORCH_KERNELS) -> Program:
    """Number the slots, bind each node to its kernel, and find when each tensor dies."""
    return Lowering(graph_module, kernels, symbol_names(graph_module)).lower()


@dataclass(slots=True)
class Lowering:
    """One run of `lower`. Mutable: `slots` and `slot_of`, which grow node by node."""

    graph_module: GraphModule
    kernels: Mapping[object, Kernel]
    names: dict[str, str]
    slots: list[object] = field(default_factory=list)
    slot_of: dict[Node, int] = field(default_factory=dict)

    def lower(self) -> Program:
        calls = [node for node in self.graph_module.graph.nodes if node.op == "call_function"]
        step_of = {node: index for index, node in enumerate(calls)}
        outputs = find_outputs(self.graph_module)
        deaths = find_deaths(calls, step_of, outputs.values())
        dead_after: dict[int, list[Node]] = {}
        for node, death in deaths.items():
            dead_after.setdefault(death, []).append(node)
        weights: dict[int, int] = {}
        inputs: dict[str, int] = {}
        instructions = []
        for node in self.graph_module.graph.nodes:
            if node.op == "placeholder":
                inputs[node.name] = self.new_slot(node)
            elif node.op == "get_attr":
                value = constant(self.graph_module, node).detach()
                weights[id(value) if value.is_mkldnn else value.untyped_storage().data_ptr()] = count_bytes(value)
                self.slots[self.new_slot(node)] = value
            elif node.op == "call_function":
                step = step_of[node]
                instructions.append(self.lower_call(node, step, deaths[node], dead_after.get(step, [])))
        return Program(
            instructions=tuple(instructions),
            slots=tuple(self.slots),
            input_slots=inputs,
            output_slots={name: self.slot_of[node] for name, node in outputs.items()},
            tensors=tuple(each.tensor for each in instructions if each.tensor is not None),
            weight_bytes=sum(weights.values()),
            outputs=describe_outputs(self.graph_module),
        )

    def lower_call(self, node: Node, step: int, death: int, dead: list[Node]) -> Instruction:
        value, kernel = node.meta["val"], self.kernels.get(node.target)
        slot = self.new_slot(node)
        frees = tuple(self.slot_of[other] for other in dead)
        if is_view(node) or not isinstance(value, Tensor):
            kind = "view" if isinstance(value, Tensor) else "scalar"
            return Instruction(node.name, kind, *self.bind(node, node.target), slot, frees)
        dims = self.dims_of(node)
        life = None if dims is None else TensorLife(node.name, step, death, count_dims(dims, value.dtype))
        if kernel is None or dims is None or life is None:
            return Instruction(node.name, "unplanned", *self.bind(node, node.target), slot, frees, life=life)
        tensor = PlannedTensor(slot, dims, value.dtype, life)
        return Instruction(node.name, "planned", *self.bind(node, kernel), slot, frees, tensor, life)

    def dims_of(self, node: Node) -> tuple[Formula, ...] | None:
        """The shape as formulas; None where it is no polynomial of the batch's shape."""
        try:
            return tuple(to_formula(dim, self.names) for dim in node.meta["val"].shape)
        except ValueError:
            return None

    def bind(self, node: Node, target: object) -> tuple[Callable[..., object], tuple[int, ...]]:
        """The callable and its argument slots. Keywords and lists of tensors are folded into a closure.

        No Node may be kept: it would keep the graph, and with it every weight that a pass has replaced.
        """
        assert callable(target)
        if not node.kwargs and not any(holds_node(arg) for arg in node.args):
            return target, tuple(self.slot_for(arg) for arg in node.args)
        inner = node.all_input_nodes
        place: dict[Node, Any] = {arg: Slot(index) for index, arg in enumerate(inner)}
        args, kwargs = torch.fx.map_arg((node.args, dict(node.kwargs)), place.__getitem__)

        run = target.prepare if isinstance(target, NativeKernel) else target

        def call(*values: object, **out: object) -> Any:
            return run(*fill(args, values), **fill(kwargs, values), **out)

        slots = tuple(self.slot_of[arg] for arg in inner)
        return NativeKernel(call) if isinstance(target, NativeKernel) else call, slots

    def slot_for(self, arg: object) -> int:
        if isinstance(arg, Node):
            return self.slot_of[arg]
        self.slots.append(arg)
        return len(self.slots) - 1

    def new_slot(self, node: Node) -> int:
        self.slots.append(None)
        self.slot_of[node] = len(self.slots) - 1
        return self.slot_of[node]


def fill(template: Any, values: Sequence[object]) -> Any:
    """The arguments with every Slot replaced by its value."""
    if isinstance(template, Slot):
        return values[template.index]
    if isinstance(template, (list, tuple)):
        return [fill(item, values) for item in template]
    if isinstance(template, dict):
        return {key: fill(item, values) for key, item in template.items()}
    return template


def count_dims(dims: Sequence[Formula], dtype: torch.dtype) -> Formula:
    """Bytes of a tensor of this shape."""
    num_bytes = Formula.constant(dtype.itemsize)
    for dim in dims:
        num_bytes = num_bytes.times(dim)
    return num_bytes


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


def find_deaths(calls: Sequence[Node], step_of: dict[Node, int], outputs: Iterable[Node]) -> dict[Node, int]:
    """For each call the last step that reads its memory, under whatever name; outputs outlive all steps."""
    kept = set(outputs)
    deaths: dict[Node, int] = {}
    for node in reversed(calls):
        last = step_of[node]
        for user in node.users:
            if user in step_of:
                last = max(last, deaths[user] if may_share_memory(user) else step_of[user])
        deaths[node] = len(calls) if node in kept else last
    return deaths
