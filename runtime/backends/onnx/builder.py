"""An ONNX graph while it is made: nodes with names of their own, small constants, and weights that stay outside."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor

Value = str
"""The name of something in the graph; empty where an optional input is left out."""
ABSENT: Value = ""
OPSET = 23
"""Of the operators that ONNX itself defines."""
CONTRIB = "com.microsoft"
IR_VERSION = 11
LARGE_BYTES = 1024
"""Constants from here on are kept outside of the graph."""

ONNX_TYPES: Mapping[torch.dtype, int] = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.bool: TensorProto.BOOL,
}


@dataclass(slots=True)
class GraphBuilder:
    """Mutable: the nodes so far. A body of a loop is one of its own, which sees all values of the graph around it."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    """What is large, by name."""
    nodes: list[NodeProto] = field(default_factory=list)
    inputs: list[ValueInfoProto] = field(default_factory=list)
    outputs: list[ValueInfoProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    names: Iterator[int] = field(default_factory=count)
    places: dict[tuple[int, torch.Size, torch.dtype], Value] = field(default_factory=dict)
    """Weights by where they lie."""
    known: dict[tuple[str, tuple[int, ...], bytes], Value] = field(default_factory=dict)
    """Constants by what they hold."""

    def body(self) -> "GraphBuilder":
        """A graph inside of this one."""
        return GraphBuilder(self.weights, names=self.names, places=self.places)

    def name(self, stem: str) -> Value:
        return f"{stem}_{next(self.names)}"

    def add(self, op: str, *inputs: Value, domain: str = "", **attributes: Any) -> Value:
        """One node with one output."""
        (output,) = self.add_all(op, inputs, 1, domain=domain, **attributes)
        return output

    def add_all(self, op: str, inputs: Sequence[Value], count: int, domain: str = "", **attributes: Any) -> list[Value]:
        outputs = [self.name(op) for _ in range(count)]
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(op, list(inputs), outputs, domain=domain, **given))
        return outputs

    def contrib(self, op: str, *inputs: Value, **attributes: Any) -> Value:
        """A node of ONNX Runtime's own operators."""
        return self.add(op, *inputs, domain=CONTRIB, **attributes)

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike) -> Value:
        """A few numbers; equal ones are there once."""
        array = np.asarray(value, dtype)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self.known:
            self.known[key] = self.name("constant")
            self.initializers.append(numpy_helper.from_array(array, self.known[key]))
        return self.known[key]

    def integers(self, *values: int) -> Value:
        """int64 [n]."""
        return self.constant(values, np.int64)

    def integer(self, value: int) -> Value:
        """An int64 of no dimensions."""
        return self.constant(value, np.int64)

    def number(self, value: float) -> Value:
        return self.constant(value, np.float32)

    def weight(self, stem: str, tensor: Tensor) -> Value:
        """A tensor of the model, once; small ones are written into the graph."""
        tensor = tensor.detach().contiguous()
        if tensor.nbytes < LARGE_BYTES and tensor.dtype != torch.bfloat16:
            return self.constant(tensor.numpy(), tensor.numpy().dtype)
        place = (tensor.data_ptr(), tensor.shape, tensor.dtype)
        if place not in self.places:
            self.places[place] = self.name(stem)
            self.weights[self.places[place]] = tensor
        return self.places[place]

    def collect(self, count: Value, compute: Callable[["GraphBuilder", Value], Value]) -> Value:
        """Loop so often. `compute` writes what gives the rows of a turn, of which it is told the number, into the body;
        returns the rows of all turns, one after another."""
        body = self.body()
        turn, goes_on, so_far = (body.name(each) for each in ("turn", "goes_on", "so_far"))
        grown = body.add("SequenceInsert", so_far, compute(body, turn))
        kept = body.add("Identity", goes_on)
        body.inputs += [
            helper.make_tensor_value_info(turn, TensorProto.INT64, []),
            helper.make_tensor_value_info(goes_on, TensorProto.BOOL, []),
            helper.make_tensor_sequence_value_info(so_far, TensorProto.FLOAT, None),
        ]
        body.outputs += [
            helper.make_tensor_value_info(kept, TensorProto.BOOL, []),
            helper.make_tensor_sequence_value_info(grown, TensorProto.FLOAT, None),
        ]
        empty = self.add("SequenceEmpty", dtype=TensorProto.FLOAT)
        always = self.constant(True, np.bool_)
        parts = self.add("Loop", count, always, empty, body=body.build(self.name("turns")))
        return self.add("ConcatFromSequence", parts, axis=0)

    def build(self, name: str) -> GraphProto:
        return helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.initializers)


def make_model(builder: GraphBuilder, *, location: str = "weights") -> onnx.ModelProto:
    """The whole; its weights are declared to lie outside of it, in a file of the name `location` or wherever a session
    is told."""
    graph = builder.build("padless")
    offset = 0
    for name, tensor in builder.weights.items():
        declared = TensorProto(name=name, data_type=ONNX_TYPES[tensor.dtype], dims=tensor.shape)
        declared.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", tensor.nbytes)):
            declared.external_data.add(key=key, value=str(value))
        graph.initializer.append(declared)
        offset += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="padless")


ALIGNMENT = 4096
"""Of each weight in a file, so that it can be mapped."""
