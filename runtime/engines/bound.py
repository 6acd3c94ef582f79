"""A program bound to batches of one shape: every tensor at its place, every kernel with its arguments.

Which views there are, where they lie and what a kernel is called with are the same for all batches of a shape; finding
it out takes Python longer than computing a short sequence. Bound, a step is its inputs copied to their places and a few
calls; compiled kernels in a row are one of them.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from runtime.batch import Arrays
from runtime.engine import EngineError
from runtime.kernels.cpu.native import NativeCall, NativeKernel
from runtime.kernels.cpu.tape import Tape
from runtime.memory.arena import Layout
from runtime.memory.lifetimes import ALIGNMENT, BatchShape
from runtime.program import Instruction, Program

aten = torch.ops.aten
Step = NativeCall | Callable[[], object]


class Inputs:
    """Memory for a batch's arrays that stays where it is while their shapes come and go. Mutable: grows, into new
    memory; views of the old stay good."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.buffers: dict[str, Tensor] = {}

    def view(self, name: str, array: npt.NDArray[Any]) -> Tensor:
        """A place for an array of this shape, type and name."""
        buffer = self.buffers.get(name)
        if buffer is None or len(buffer) < array.size:
            dtype = torch.from_numpy(array[:0]).dtype
            buffer = self.buffers[name] = torch.empty(2 * max(array.size, 32), dtype=dtype, device=self.device)
        return buffer[: array.size].view(array.shape)


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
        """`inputs`: where arrays are copied to before each run. `others`: arguments that are always the same.

        Raises EngineError where an argument is missing; ValueError where a kernel cannot be called with such shapes.
        """
        missing = program.read_inputs - inputs.keys() - others.keys()
        if missing:
            raise EngineError(f"the model reads {', '.join(sorted(missing))}, which the batch does not have")
        self.slots = list(program.slots)
        self.output_slots = program.output_slots
        self.inputs = inputs
        changing = {instruction.slot for instruction in program.instructions} | set(program.input_slots.values())
        self.is_fixed = [slot not in changing for slot in range(len(program.slots))]
        for name, value in {**inputs, **others}.items():
            self.fix(program.input_slots[name], value)
        self.place_tensors(program, shape, layout)
        steps = [self.bind(instruction) for instruction in program.instructions]
        self.steps = join_calls([step for step in steps if step is not None])
        self.late_slots = [slot for slot, is_fixed in enumerate(self.is_fixed) if not is_fixed]

    def fix(self, slot: int, value: object) -> None:
        """The slot holds this in every step."""
        self.slots[slot] = value
        self.is_fixed[slot] = True

    def place_tensors(self, program: Program, shape: BatchShape, layout: Layout[Tensor]) -> None:
        """Views of the arena, where the plan has them."""
        typed: dict[tuple[int, torch.dtype], Tensor] = {}
        for tensor, (buffer, offset) in zip(program.tensors, layout.places, strict=True):
            key = (id(buffer), tensor.dtype)
            if key not in typed:
                typed[key] = buffer[: len(buffer) // ALIGNMENT * ALIGNMENT].view(tensor.dtype)
            dims = [dim.evaluate(shape) for dim in tensor.dims]
            strides = [math.prod(dims[index + 1 :]) for index in range(len(dims))]
            self.slots[tensor.slot] = typed[key].as_strided(dims, strides, offset // tensor.dtype.itemsize)

    def bind(self, instruction: Instruction) -> Step | None:
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
            call = instruction.run.prepare(*args, out=out)
            if call.is_lasting:
                return call
        return partial(instruction.run, *args, out=out)

    def is_size(self, instruction: Instruction) -> bool:
        """Whether the result is a number that follows from the batch's shape, and not from a tensor's contents."""
        has_tensor = any(isinstance(self.slots[slot], Tensor) for slot in instruction.args)
        return instruction.kind == "scalar" and (not has_tensor or instruction.run is aten.sym_size.int)

    def fetch(self, instruction: Instruction) -> list[object]:
        return [self.slots[slot] for slot in instruction.args]

    def fetch_tensor(self, slot: int) -> Tensor:
        value = self.slots[slot]
        assert isinstance(value, Tensor)
        return value

    def run_late(self, instruction: Instruction) -> None:
        """What depends on a result that torch allocates anew in each step, or is one."""
        if instruction.tensor is None:
            self.slots[instruction.slot] = instruction.run(*self.fetch(instruction))
        else:
            instruction.run(*self.fetch(instruction), out=self.slots[instruction.slot])
        for slot in instruction.frees:
            if not self.is_fixed[slot]:
                self.slots[slot] = None

    def run(self, arrays: Arrays) -> dict[str, Tensor]:
        """The outputs by name, in memory that belongs to the next step. `arrays`: in the shapes that were bound.

        Raises RuntimeError or IndexError where a kernel fails.
        """
        for name, place in self.inputs.items():
            place.copy_(torch.from_numpy(arrays[name]))
        try:
            for step in self.steps:
                step()
            outputs = {name: self.fetch_tensor(slot) for name, slot in self.output_slots.items()}
        finally:
            for slot in self.late_slots:  # what torch has allocated must not outlive the step
                self.slots[slot] = None
        return outputs


def join_calls(steps: Iterable[Step]) -> list[Callable[[], object]]:
    """Compiled kernels that follow one another become one step."""
    joined: list[Callable[[], object]] = []
    row: list[NativeCall] = []
    for step in steps:
        if isinstance(step, NativeCall):
            row.append(step)
            continue
        if row:
            joined.append(Tape(row).run)
            row = []
        joined.append(step)
    return [*joined, Tape(row).run] if row else joined
