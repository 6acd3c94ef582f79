"""What looks at whole sequences, without packed kernels: a loop over groups of them, each padded to its own longest."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runtime.backends.onnx.builder import GraphBuilder, Value
from runtime.backends.onnx.lowering import Lowering

MASKED = float(np.finfo(np.float32).min) / 2
"""Added to scores of keys that are not seen. A row of -inf alone would give NaN."""


@dataclass(frozen=True, slots=True)
class Group:
    """What a loop's body knows of its group: all int64; `num_*` and `width` of no dimensions, the others [num]."""

    builder: GraphBuilder
    order: Value
    """The sequences."""
    seqlens: Value
    places: Value
    """The token at each padded place."""
    num_seqs: Value
    width: Value
    """Tokens a sequence, padded."""

    def shape(self, *sizes: "Value | int") -> Value:
        """A target of Reshape."""
        parts = [
            self.builder.integers(size)
            if isinstance(size, int)
            else self.builder.add("Unsqueeze", size, self.builder.integers(0))
            for size in sizes
        ]
        return self.builder.add("Concat", *parts, axis=0)


def attend_by_groups(lowering: Lowering, attend: Callable[[Group], Value]) -> Value:
    """`attend` gives a group's rows, [num padded places, width]; returns those of all tokens, packed."""
    return lowering.builder.add("Gather", loop_over_groups(lowering, attend), lowering.read_groups("unpad_index"))


def loop_over_groups(lowering: Lowering, compute: Callable[[Group], Value]) -> Value:
    """`compute` writes into the body of a loop what gives rows of a group; returns those of all, one after another."""
    table, order = lowering.read_groups("groups"), lowering.read_groups("group_order")
    seqlens, pad_index = lowering.read_groups("group_seqlens"), lowering.read_groups("pad_index")

    def take_turn(body: GraphBuilder, turn: Value) -> Value:
        row = body.add("Gather", table, turn)
        first, count, first_place, width = (body.add("Gather", row, body.integer(column)) for column in range(4))
        num_places = body.add("Mul", count, width)
        own, lengths = (slice_rows(body, each, first, count) for each in (order, seqlens))
        places = slice_rows(body, pad_index, first_place, num_places)
        return compute(Group(body, own, lengths, places, count, width))

    builder = lowering.builder
    num_groups = builder.add("Squeeze", builder.add("Shape", table, start=0, end=1))
    return builder.collect(num_groups, take_turn)


def slice_rows(builder: GraphBuilder, rows: Value, first: Value, count: Value) -> Value:
    zero = builder.integers(0)
    end = builder.add("Add", first, count)
    start, stop = (builder.add("Unsqueeze", each, zero) for each in (first, end))
    return builder.add("Slice", rows, start, stop, zero)
