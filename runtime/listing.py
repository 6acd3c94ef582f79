"""Graphs and plans as text: what `padless graph` prints and the snapshot tests keep."""

from collections.abc import Iterator

from torch import Tensor
from torch.fx import GraphModule, Node

from runtime.capture import rename_symbols, symbol_names
from runtime.memory.lifetimes import BatchShape, live_peak
from runtime.memory.planner import plan_region
from runtime.program import Program


def format_graph(graph_module: GraphModule) -> str:
    """One line per call: `name: type[shape] = op(arguments)`."""
    names = symbol_names(graph_module)
    return "\n".join(
        f"{node.name}: {format_type(node, names)} = {format_target(node)}({', '.join(format_args(node))})"
        for node in graph_module.graph.nodes
        if node.op == "call_function"
    )


def format_target(node: Node) -> str:
    return str(node.target).removesuffix(".default")


def format_type(node: Node, names: dict[str, str]) -> str:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return rename_symbols(str(value), names)
    shape = ", ".join(rename_symbols(str(dim), names) for dim in value.shape)
    return f"{str(value.dtype).removeprefix('torch.')}[{shape}]"


def format_args(node: Node) -> Iterator[str]:
    for arg in node.args:
        yield str(arg.target) if isinstance(arg, Node) and arg.op == "get_attr" else str(arg)
    for key, value in node.kwargs.items():
        yield f"{key}={value}"


def format_program(program: Program, shape: BatchShape) -> str:
    """Every instruction with its kind, and for planned tensors size, life and offset in a batch of `shape`."""
    lifetimes = program.lifetimes(shape)
    offsets, peak = plan_region(lifetimes)
    place = {each.root: index for index, each in enumerate(program.planned)}
    lines = []
    for number, instruction in enumerate(program.instructions):
        line = f"{number:4} {instruction.kind:9} {instruction.name}"
        if instruction.root in place and instruction.life is not None:
            index = place[instruction.root]
            life, size = lifetimes[index], instruction.life.num_bytes
            line += f"  {size} bytes, steps {life.start}-{life.end}, {life.num_bytes} at {offsets[index]}"
        lines.append(line)
    kinds = [instruction.kind for instruction in program.instructions]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(("planned", "unplanned", *kinds)))
    total = sum(life.num_bytes for life in lifetimes)
    lines.append(
        f"{counts}; at {tuple(shape)}: peak {peak} bytes, live at most {live_peak(lifetimes)}, "
        f"{total} if nothing shared memory"
    )
    return "\n".join(lines)
