"""A model as an ONNX file for use elsewhere: padded inputs as everybody has them, packed behind its door.

    input_ids, attention_mask [batch, sequence] int64, and token_type_ids where the model has them
        -> its outputs; rows of tokens as [batch, sequence, ...], 0 where the mask is

Each sequence has a token at least.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from torch import Tensor
from torch.fx import GraphModule

from runtime.backends.onnx.builder import ALIGNMENT, ONNX_TYPES, GraphBuilder, Value, make_model
from runtime.backends.onnx.lowering import Lowering
from runtime.backends.onnx.table import LOWERINGS
from runtime.capture import describe_outputs

SHAPE = ["batch", "sequence"]
MOST_INLINE_BYTES = 1 << 30
"""A file holds 2 GiB at most; weights from here on lie in one of their own."""


@dataclass(slots=True)
class PaddedLowering(Lowering):
    """Mutable: `places`, [num_tokens, 2], where each token stands among the padded ones."""

    places: Value = ""

    def lower(self) -> GraphBuilder:
        self.pack()
        return Lowering.lower(self)

    def pack(self) -> None:
        """Compute every input that a packed graph may read."""
        builder = self.builder
        ids, mask = (self.declare(name, TensorProto.INT64, SHAPE) for name in ("input_ids", "attention_mask"))
        is_token = builder.add("Cast", mask, to=TensorProto.BOOL)
        seqlens = builder.add(
            "ReduceSum", builder.add("Cast", is_token, to=TensorProto.INT64), builder.integers(1), keepdims=0
        )
        found = builder.add("NonZero", is_token)
        self.places = builder.add("Transpose", found, perm=[1, 0])
        owners = builder.add("Gather", found, builder.integer(0))
        starts = builder.add("CumSum", seqlens, builder.integer(0), exclusive=1)
        num_tokens = builder.add("Squeeze", builder.add("Shape", owners))
        index = builder.add("Range", builder.integer(0), num_tokens, builder.integer(1))
        positions = builder.add("Sub", index, builder.add("Gather", starts, owners))
        ends = builder.add("CumSum", seqlens, builder.integer(0))
        borders = builder.add("Concat", builder.integers(0), ends, axis=0)
        zeros = builder.add("Mul", seqlens, builder.integer(0))
        self.declared |= {
            "input_ids": builder.add("GatherND", ids, self.places),
            "position_ids": positions,
            "adapter_ids": builder.add("Mul", index, builder.integer(0)),
            "logit_rows": index,
            "cu_seqlens": builder.add("Cast", borders, to=TensorProto.INT32),
            "max_seqlen": builder.add("ReduceMax", seqlens, keepdims=0),
            "num_keys": builder.add("Cast", seqlens, to=TensorProto.INT32),
            "num_prompt_tokens": builder.add("Cast", zeros, to=TensorProto.INT32),
            "seq_ids": owners,
        }
        self.group(seqlens, starts, owners, positions)
        del self.declared["attention_mask"]

    def group(self, seqlens: Value, starts: Value, owners: Value, positions: Value) -> None:
        """All sequences are one group."""
        builder, zero = self.builder, self.builder.integers(0)
        width = self.declared["max_seqlen"]
        num_seqs = builder.add("Squeeze", builder.add("Shape", seqlens))
        parts = [zero, *(builder.add("Unsqueeze", each, zero) for each in (num_seqs, builder.integer(0), width))]
        columns = builder.add("Range", builder.integer(0), width, builder.integer(1))
        lengths, firsts = (builder.add("Unsqueeze", each, builder.integers(1)) for each in (seqlens, starts))
        last = builder.add("Sub", lengths, builder.integer(1))
        padded = builder.add("Add", builder.add("Min", columns, last), firsts)
        self.declared |= {
            "groups": builder.add("Unsqueeze", builder.add("Concat", *parts, axis=0), zero),
            "group_order": builder.add("Range", builder.integer(0), num_seqs, builder.integer(1)),
            "group_seqlens": seqlens,
            "pad_index": builder.add("Reshape", padded, builder.integers(-1)),
            "unpad_index": builder.add("Add", builder.add("Mul", owners, width), positions),
        }

    def declare(self, name: str, dtype: int, shape: Sequence[int | str]) -> Value:
        """Token types are the caller's too, where the model reads them."""
        if name == "token_type_ids" and name not in self.declared:
            given = Lowering.declare(self, name, dtype, SHAPE)
            self.declared[name] = self.builder.add("GatherND", given, self.places)
        return Lowering.declare(self, name, dtype, shape)

    def give(self, name: str, result: Value, traced: Tensor) -> None:
        (spec,) = (each for each in describe_outputs(self.graph_module) if each.name == name)
        if spec.dims[0] not in ("num_tokens", "num_logits"):
            self.give_as(name, result, ["batch", *spec.dims[1:]])
            return
        shape = self.builder.add("Shape", "attention_mask")
        rest = self.builder.integers(*(int(size) for size in spec.dims[1:]))
        whole = self.builder.add("Concat", shape, rest, axis=0)
        zeros = self.builder.add("Expand", self.builder.constant(0.0, np.float32), whole)
        padded = self.builder.add("ScatterND", zeros, self.places, result)
        self.give_as(name, padded, [*SHAPE, *spec.dims[1:]])


def save_padded(graph_module: GraphModule, path: Path) -> None:
    """Write the file, and one with the weights beside it where they are large.

    Raises UnusableConfig where an op has no counterpart, OSError, onnx.checker.ValidationError.
    """
    builder = PaddedLowering(graph_module, LOWERINGS).lower()
    is_large = sum(tensor.nbytes for tensor in builder.weights.values()) > MOST_INLINE_BYTES
    weights = path.with_name(f"{path.name}.data")
    model = make_model(builder, location=weights.name)
    if is_large:
        write_weights(builder.weights, weights)
    else:
        put_inside(model, builder.weights)
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))


def put_inside(model: onnx.ModelProto, weights: Mapping[str, Tensor]) -> None:
    for declared in model.graph.initializer:
        if declared.name in weights:
            tensor = weights[declared.name]
            declared.CopyFrom(
                TensorProto(
                    name=declared.name,
                    data_type=ONNX_TYPES[tensor.dtype],
                    dims=tensor.shape,
                    raw_data=tensor.numpy().tobytes(),
                )
            )


def write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """As `make_model` has declared them."""
    with path.open("wb") as file:
        for tensor in weights.values():
            file.seek(-(-file.tell() // ALIGNMENT) * ALIGNMENT)
            file.write(tensor.numpy().tobytes())
