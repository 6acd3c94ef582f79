"""A program bound to batches of one shape: every tensor at its place, every kernel with its arguments.

Which views there are, where they lie and what a kernel is called with are the same for all batches of a shape; finding
it out takes Python longer than computing a short sequence. Bound, a step is its inputs copied to their places and a few
calls; compiled kernels in a row are one of them.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import groupby
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from runtime.kernels.cpu.native import NativeCall, NativeKernel
from runtime.kernels.cpu.tape import Tape
from runtime.memory.arena import Layout
from runtime.memory.lifetimes import ALIGNMENT, BatchShape
from runtime.program import Instruction, Program

aten = torch.ops.aten
Arrays = dict[str, npt.NDArray[Any]]


class Inputs:
    """Memory for a batch's arrays that stays where it is while their shapes come and go. Mutable: grows.

    Whoever holds views of it must drop them when `place` answers that it has moved.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.buffers: dict[str, Tensor] = {}

    def reserve(self, arrays: Arrays) -> bool:
        """Make room for arrays of these sizes. Whether anything has moved for it."""
        has_moved = False
        for name, array in arrays.items():
            buffer = self.buffers.get(name)
            if buffer is None or len(buffer) < array.size:
                dtype = torch.from_numpy(array[:0]).dtype
                self.buffers[name] = torch.empty(2 * max(array.size, 32), dtype=dtype, device=self.device)
                has_moved = True
        return has_moved

    def view(self, name: str, array: npt.NDArray[Any]) -> Tensor:
        """The place of an array of this shape."""
        return self.buffers[name][: array.size].view(array.shape)


class BoundProgram:
    """Mutable: the contents of its tensors, and while a step runs the slots of results that torch allocates."""

    def __init__(
        self,
        program: Program,
        shape: BatchShape,
        layout: Layout[Tensor],
        inputs: dict[str, Tensor],
        others: Mapping[str, object],
    ) -> None:
        """`inputs`: where arrays are copied to before each run. `others`: arguments that are always the same."""
        self.slots = list(program.slots)
        self.output_slot = program.output_slot
        self.inputs = inputs
        changing = {instruction.slot for instruction in program.instructions} | set(program.input_slots.values())
        self.is_fixed = [slot not in changing for slot in range(len(program.slots))]
        for name, value in {**inputs, **others}.items():
            self.fix(program.input_slots[name], value)
        self.place_tensors(program, shape, layout)
        steps = [self.bind(instruction) for instruction in program.instructions]
        self.steps = list(join_calls(step for step in steps if step is not None))

    def fix(self, slot: int, value: object) -> None:
        self.slots[slot] = value
        self.is_fixed[slot] = True

    def place_tensors(self, program: Program, shape: BatchShape, layout: Layout[Tensor]) -> None:
        typed: dict[tuple[int, torch.dtype], Tensor] = {}
        for tensor, (buffer, offset) in zip(program.tensors, layout.places, strict=True):
            key = (id(buffer), tensor.dtype)
            if key not in typed:
                typed[key] = buffer[: len(buffer) // ALIGNMENT * ALIGNMENT].view(tensor.dtype)
            dims = [dim.evaluate(shape) for dim in tensor.dims]
            strides = [math.prod(dims[index + 1 :]) for index in range(len(dims))]
            self.slots[tensor.slot] = typed[key].as_strided(dims, strides, offset // tensor.dtype.itemsize)

    def bind(self, instruction: Instruction) -> "Callable[[], object] | NativeCall | None":
        """What has to be done for an instruction in each step: nothing where its result never changes."""
        is_known = all(self.is_fixed[slot] for slot in instruction.args)
        if is_known and (instruction.kind == "view" or self.is_size(instruction)):
            self.fix(instruction.slot, instruction.run(*self.fetch(instruction)))
            return None
        self.is_fixed[instruction.slot] = instruction.tensor is not None
        if instruction.tensor is None or not is_known:
            return partial(self.run_late, instruction)
        args, out = self.fetch(instruction), self.slots[instruction.slot]
        if isinstance(instruction.run, NativeKernel):
            return instruction.run.prepare(*args, out=out)
        return partial(instruction.run, *args, out=out)

    def is_size(self, instruction: Instruction) -> bool:
        """Whether the result is a number that follows from the batch's shape, and not from a tensor's contents."""
        has_tensor = any(isinstance(self.slots[slot], Tensor) for slot in instruction.args)
        return instruction.kind == "scalar" and (not has_tensor or instruction.run is aten.sym_size.int)

    def fetch(self, instruction: Instruction) -> list[object]:
        return [self.slots[slot] for slot in instruction.args]

    def run_late(self, instruction: Instruction) -> None:
        """What depends on a result that torch allocates anew in each step, or is one."""
        if instruction.tensor is None:
            self.slots[instruction.slot] = instruction.run(*self.fetch(instruction))
        else:
            instruction.run(*self.fetch(instruction), out=self.slots[instruction.slot])
        for slot in instruction.frees:
            if not self.is_fixed[slot]:
                self.slots[slot] = None

    def run(self, arrays: Arrays) -> Tensor:
        """The result, in memory that belongs to the next step."""
        for name, place in self.inputs.items():
            place.copy_(torch.from_numpy(arrays[name]))
        for step in self.steps:
            step()
        result = self.slots[self.output_slot]
        assert isinstance(result, Tensor)
        return result


def join_calls(steps: "Iterable[Callable[[], object] | NativeCall]") -> "Iterable[Callable[[], object]]":
    """Compiled kernels that follow one another become one step."""
    for is_native, group in groupby(steps, key=lambda step: isinstance(step, NativeCall) and not step.copies):
        calls = list(group)
        if is_native:
            yield Tape([call for call in calls if isinstance(call, NativeCall)]).run
        else:
            yield from (step.run if isinstance(step, NativeCall) else step for step in calls)
