"""From a captured and rewritten graph to an ONNX graph over the same packed inputs, with symbolic sizes."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from onnx import TensorProto, helper
from torch import Tensor
from torch.fx import GraphModule, Node

from runtime.backends.onnx.builder import ABSENT, ONNX_TYPES, GraphBuilder, Value
from runtime.backends.onnx.inputs import ATTENTION_INPUTS, CACHE
from runtime.batch import INPUTS
from runtime.capture import constant, find_outputs, rename_symbols, split_dim, symbol_names, sympify
from runtime.config import UnusableConfig
from runtime.ops.spec import name_arguments

Lower = Callable[["Lowering", Node, Mapping[str, Any]], Value]
"""Writes what computes a node, whose arguments it is given by name, and returns the name of the result."""
CACHE_SHAPE = ["num_cached"]
"""All numbers of a layer in a row: what is written in place may have no other shape between."""


@dataclass(slots=True)
class Lowering:
    """One graph being written. Mutable: the builder, and what has been found of each node so far."""

    graph_module: GraphModule
    table: Mapping[object, Lower]
    builder: GraphBuilder = field(default_factory=GraphBuilder)
    values: dict[Node, Value] = field(default_factory=dict)
    symbols: dict[str, str] = field(default_factory=dict)
    """The exporter's names of sizes, by ours."""
    sizes: dict[sympy.Expr, Value] = field(default_factory=dict)
    """int64 of no dimensions, by what they are."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """Constants of the model by their places in it."""
    matrices: dict[str, Tensor] = field(default_factory=dict)
    """Those that only a product reads, transposed."""
    declared: dict[str, Value] = field(default_factory=dict)
    """The inputs by name: of the model, or what is computed in place of one."""
    shared: dict[Hashable, Value] = field(default_factory=dict)
    """What several nodes need and one has computed."""
    caches: dict[int, Value] = field(default_factory=dict)
    """The KV cache of each layer as the last node that wrote to it left it."""

    def lower(self) -> GraphBuilder:
        """Raises UnusableConfig where an op has no counterpart."""
        self.symbols = symbol_names(self.graph_module)
        nodes = list(self.graph_module.graph.nodes)
        unknown = {str(node.target) for node in nodes if node.op == "call_function" and not self.knows(node)}
        if unknown:
            raise UnusableConfig(
                f"engine.kind onnxruntime has no operator for {', '.join(sorted(unknown))}, which this model computes. "
                "Set engine.kind to planned"
            )
        for node in nodes:
            if node.op == "placeholder":
                self.read_input(node)
            elif node.op == "call_function" and isinstance(node.meta["val"], Tensor):
                arguments = name_arguments(node.target, node.args, node.kwargs)
                self.values[node] = self.table[node.target](self, node, arguments)
        for name, node in find_outputs(self.graph_module).items():
            self.give(name, self.values[node], node.meta["val"])
        return self.builder

    def knows(self, node: Node) -> bool:
        """Sizes are read from the graph's own account of them."""
        return node.target in self.table or not isinstance(node.meta["val"], Tensor)

    def read_input(self, node: Node) -> None:
        """A number is only read where a size depends on it, and a cache comes by layers."""
        value = node.meta["val"]
        if not isinstance(value, Tensor) or node.name == CACHE:
            return
        sizes = zip(value.shape, INPUTS[node.name].dims, strict=True)
        shape = [size if isinstance(size, int) else str(name) for size, name in sizes]
        self.values[node] = self.declare(node.name, ONNX_TYPES[value.dtype], shape)

    def declare(self, name: str, dtype: int, shape: Sequence[int | str]) -> Value:
        """An input of the model, once."""
        if name not in self.declared:
            self.builder.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
            self.declared[name] = name
        return self.declared[name]

    def read_groups(self, name: str) -> Value:
        """One of the inputs that attention is told by which sequences it takes together."""
        return self.declare(name, TensorProto.INT64, ATTENTION_INPUTS[name])

    def read_cache(self, layer: int) -> Value:
        """The cache of one layer as it is at this place of the graph."""
        if layer not in self.caches:
            return self.declare(f"{CACHE}.{layer}", TensorProto.FLOAT, CACHE_SHAPE)
        return self.caches[layer]

    def give(self, name: str, result: Value, traced: Tensor) -> None:
        """An output of the model, in fp32."""
        if traced.dtype != torch.float32:
            result = self.builder.add("Cast", result, to=TensorProto.FLOAT)
        dims = [rename_symbols(str(sympify(size)), self.symbols) for size in traced.shape]
        self.give_as(name, result, [int(each) if each.isdigit() else each for each in dims])

    def give_as(self, name: str, result: Value, shape: Sequence[int | str]) -> None:
        self.rename_result(result, name)
        self.builder.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def write_cache(self, layer: int, places: Value, rows: Value) -> None:
        """Into the cache of one layer, once: what is given back has no node of its own, which might copy it."""
        assert layer not in self.caches, f"Layer {layer} is stored twice. This is a bug."
        name, cache = f"{CACHE}.{layer}.out", self.read_cache(layer)
        self.builder.nodes.append(helper.make_node("ScatterND", [cache, places, rows], [name]))
        self.builder.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, CACHE_SHAPE))
        self.caches[layer] = name

    def rename_result(self, value: Value, name: str) -> None:
        """By a node of its own: a value may be several outputs, or an input."""
        self.builder.nodes.append(helper.make_node("Identity", [value], [name]))

    def read(self, value: object) -> Value:
        """An argument of a call: what a node gives, a constant of the model, or none."""
        if value is None:
            return ABSENT
        assert isinstance(value, Node), f"{value} is not a tensor. This is a bug."
        if value in self.values:
            return self.values[value]
        if value.op == "get_attr":
            return self.builder.weight(value.name, self.tensor(value))
        raise AssertionError(f"{value} has not been computed. This is a bug.")

    def tensor(self, node: object) -> Tensor:
        """A constant of the model, read once."""
        assert isinstance(node, Node) and node.op == "get_attr", f"{node} is no constant. This is a bug."
        place = str(node.target)
        if place not in self.weights:
            self.weights[place] = constant(self.graph_module, node).contiguous()
        return self.weights[place]

    def matrix(self, node: object) -> Value:
        """The weight of a linear layer as MatMul takes it: [in_features, out_features]."""
        assert isinstance(node, Node) and node.op == "get_attr", f"{node} is no constant. This is a bug."
        place = str(node.target)
        if place not in self.matrices:
            self.matrices[place] = constant(self.graph_module, node).t().contiguous()
        return self.builder.weight(node.name, self.matrices[place])

    def share(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        if key not in self.shared:
            self.shared[key] = compute()
        return self.shared[key]

    def size(self, number: object) -> Value:
        """A size of a traced tensor, int64 of no dimensions."""
        expression = sympify(number)
        if expression not in self.sizes:
            self.sizes[expression] = self.compute_size(expression)
        return self.sizes[expression]

    def compute_size(self, expression: sympy.Expr) -> Value:
        if expression.is_Integer:
            return self.builder.integer(int(expression))
        if expression.is_Symbol:
            return self.measure(self.symbols[str(expression)])
        ops = {sympy.Add: "Add", sympy.Mul: "Mul"}
        op = next((name for kind, name in ops.items() if isinstance(expression, kind)), None)
        assert op is not None, f"A size is {expression}. This is a bug."
        first, *rest = (self.size(each) for each in expression.args)
        for each in rest:
            first = self.builder.add(op, first, each)
        return first

    def measure(self, symbol: str) -> Value:
        """A symbol of `INPUTS` by the shape of an input that has it, or the number that it is."""
        if symbol in INPUTS:
            return self.declare(symbol, TensorProto.INT64, [])
        for declared, value in self.declared.items():
            dims = INPUTS[declared].dims if declared in INPUTS else ()
            for place, (name, extra) in enumerate(map(split_dim, dims)):
                if name == symbol:
                    shape = self.builder.add("Shape", value, start=place, end=place + 1)
                    size = self.builder.add("Squeeze", shape)
                    return self.builder.add("Sub", size, self.builder.integer(extra)) if extra else size
        raise AssertionError(f"No input tells {symbol}. This is a bug.")

    def shape(self, sizes: Sequence[object]) -> Value:
        """A target of Reshape, int64 [n]: constant where at most one size varies, which is then what is left."""
        known = [sympify(size) for size in sizes]
        varying = [each for each in known if not each.is_Integer]
        if len(varying) <= 1:
            return self.builder.integers(*(int(each) if each.is_Integer else -1 for each in known))
        parts = [self.builder.add("Unsqueeze", self.size(each), self.builder.integers(0)) for each in known]
        return self.builder.add("Concat", *parts, axis=0)
