"""A program that runs: kernels with their arguments, told before each step where tensors lie and how large they are.

What a kernel is called with takes Python longer to find out than computing a short sequence takes. So compiled kernels
in a row stand on a tape, made once; a step patches addresses and sizes into it and calls it. What torch computes gets
tensors made for it, which are kept as long as the shape of the batch stays the same.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.backends.backend import Kernel
from runtime.backends.cpu.native import Arguments, NativeKernel, lies_as_wanted
from runtime.backends.cpu.tape import Tape
from runtime.engine import EngineError
from runtime.memory.arena import Layout
from runtime.memory.lifetimes import SYMBOLS, Formula
from runtime.memory.sizes import Numbers, Sizes
from runtime.ops.spec import name_arguments
from runtime.program import Instruction, Program
from runtime.values import Late, View

Step = Callable[[], None]
TYPICAL = (1009, 251, 127, 83, 61, 67, 71, 73)
"""SYMBOLS at which layouts are looked at: primes, so that what is equal here is equal everywhere."""


class BoundProgram:
    """`kernels`: by op, of everything that the program has planned. Mutable: where things lie in the current step, and
    the tensors made for torch."""

    def __init__(self, program: Program, kernels: Mapping[object, Kernel]) -> None:
        self.program = program
        self.kernels = kernels
        self.sizes = Sizes()
        self.memory = Memory(program, self.sizes)
        self.planned_roots = np.array([each.root for each in program.planned], np.int64)
        self.layout: Layout[Tensor] | None = None
        self.symbols: tuple[int, ...] = ()
        self.numbers: Numbers = np.zeros(0, np.int64)
        calls = [self.find_call(each) for each in program.instructions]
        taped = [call for call in calls if call is not None]
        self.tape = Tape(taped, self.sizes) if taped else None
        self.steps = list(self.list_steps([call is not None for call in calls]))

    def find_call(self, instruction: Instruction) -> tuple[NativeKernel, Arguments] | None:
        """What can stand on a tape: a compiled kernel whose tensors are known by formulas, and lie as it wants them."""
        kernel = self.kernels.get(instruction.target)
        if not isinstance(kernel, NativeKernel) or instruction.kind != "planned":
            return None
        named = name_arguments(instruction.target, instruction.args, instruction.kwargs)
        arguments = {**named, "out": instruction.out}
        fits = all(fits_tape(kernel, name, value) for name, value in arguments.items())
        return (kernel, arguments) if fits else None

    def list_steps(self, is_taped: Sequence[bool]) -> Iterator[Step]:
        """Compiled kernels that follow one another are one step."""
        first = last = 0
        frees: list[int] = []
        for instruction, on_tape in zip(self.program.instructions, is_taped, strict=True):
            if on_tape:
                last += 1
                frees += instruction.frees
                continue
            if first < last:
                yield TapeStep(self, first, last, frees).run
            first, frees = last, []
            yield TorchStep(self, instruction).run
        if first < last:
            yield TapeStep(self, first, last, frees).run

    def run(
        self,
        symbols: Sequence[int],
        layout: Layout[Tensor],
        inputs: Mapping[str, Tensor],
        kept: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """The outputs by name, in memory that belongs to the next step. `symbols`: SYMBOLS of the batch; `inputs`:
        its arrays, on the device; `kept`: inputs that stay from step to step.

        Raises RuntimeError or IndexError where a kernel fails; EngineError where an input is missing.
        """
        missing = self.program.read_inputs - inputs.keys() - kept.keys() - {*SYMBOLS}
        if missing:
            raise EngineError(f"the model reads {', '.join(sorted(missing))}, which the batch does not have")
        for name, tensor in kept.items():  # the others were checked; kernels would write beside a cache of another type
            assert tensor.dtype == self.program.input_dtypes[name], f"{name} is {tensor.dtype}. This is a bug."
        self.resize(tuple(symbols), layout)
        self.memory.take_inputs({**inputs, **kept})
        if self.tape is not None:
            self.tape.place(self.memory.bases, self.numbers)
        try:
            for step in self.steps:
                step()
            return {name: self.memory.fetch(value) for name, value in self.program.outputs_by_name.items()}
        finally:
            self.memory.drop_late()  # what torch has allocated must not outlive the step

    def resize(self, symbols: tuple[int, ...], layout: Layout[Tensor]) -> None:
        if symbols != self.symbols:
            self.symbols = symbols
            self.numbers = self.sizes.evaluate(symbols)
            self.memory.resize(self.numbers)
            if self.tape is not None:
                self.tape.resize(self.numbers)
        if layout is not self.layout:
            self.layout = layout
            self.memory.lay_out(self.planned_roots, layout)

    def forget(self) -> None:
        """Let go of the arena's memory."""
        self.layout = None
        self.memory.forget()


class TapeStep:
    """The calls [first, last) of a tape, behind which nobody reads the roots in `frees` any more."""

    def __init__(self, bound: BoundProgram, first: int, last: int, frees: Iterable[int]) -> None:
        assert bound.tape is not None
        self.bound, self.tape = bound, bound.tape
        self.first, self.last = first, last
        self.frees = [root for root in frees if root in bound.memory.late]

    def run(self) -> None:
        memory = self.bound.memory
        if memory.has_moved:  # something that torch has just computed is read
            self.tape.place(memory.bases, self.bound.numbers)
            memory.has_moved = False
        self.tape.run(self.first, self.last)
        for root in self.frees:
            memory.free(root)


class TorchStep:
    """An instruction that gets tensors."""

    def __init__(self, bound: BoundProgram, instruction: Instruction) -> None:
        self.memory = bound.memory
        self.instruction = instruction
        self.kernel = bound.kernels[instruction.target] if instruction.kind == "planned" else instruction.target
        self.memory.learn((instruction.args, dict(instruction.kwargs), instruction.out))

    def run(self) -> None:
        instruction, memory = self.instruction, self.memory
        args, kwargs = memory.fetch(instruction.args), memory.fetch(instruction.kwargs)
        if instruction.kind == "planned":
            self.kernel(*args, **kwargs, out=memory.fetch(instruction.out))
        else:
            memory.keep(instruction.root, instruction.target(*args, **kwargs), instruction.out)
        for root in instruction.frees:
            memory.free(root)


class Memory:
    """What lies where. Mutable: `bases` (addresses of roots), the roots' tensors, and tensors made of them."""

    def __init__(self, program: Program, sizes: Sizes) -> None:
        self.program = program
        self.sizes = sizes
        self.bases = np.zeros(program.num_roots, np.int64)
        self.objects: dict[int, Any] = dict(program.constants)
        """By root: tensors, and whatever else ops have given."""
        for root, value in program.constants.items():
            self.bases[root] = value.data_ptr()
        self.places: dict[int, tuple[Tensor, int]] = {}
        """Of planned roots: the arena's buffer, and the offset in bytes."""
        self.late = {each.root for each in program.instructions if each.kind != "planned"}
        self.passing = self.late | {*program.inputs.values()}
        """Roots whose tensors are others in each step."""
        self.has_moved = False
        self.sizes_of: dict[View, tuple[list[int], list[int], int]] = {}
        self.tensors: dict[View, Tensor] = {}
        self.numbers: list[int] = []
        self.learn(dict(program.outputs_by_name))

    def learn(self, value: object) -> None:
        """Have the numbers of all views in a value evaluated."""
        if isinstance(value, View):
            dims, strides = ([self.sizes.add(each) for each in formulas] for formulas in (value.dims, value.strides))
            self.sizes_of[value] = dims, strides, self.sizes.add(value.offset)
        elif isinstance(value, Formula):
            self.sizes.add(value)
        elif isinstance(value, dict | list | tuple):
            for item in value.values() if isinstance(value, dict) else value:
                self.learn(item)

    def resize(self, numbers: Numbers) -> None:
        self.numbers = numbers.tolist()
        self.tensors.clear()

    def lay_out(self, roots: Numbers, layout: Layout[Tensor]) -> None:
        addresses = [buffer.data_ptr() + offset for buffer, offset in layout.places]
        self.bases[roots] = addresses
        self.places = dict(zip(roots.tolist(), layout.places, strict=True))
        self.tensors.clear()

    def take_inputs(self, inputs: Mapping[str, Tensor]) -> None:
        """Read where they are: they stay as long as the step."""
        for name, tensor in inputs.items():
            root = self.program.inputs[name]
            self.objects[root] = tensor
            self.bases[root] = tensor.data_ptr()

    def keep(self, root: int, result: Any, view: View | None) -> None:
        """What torch has given; as the program has foreseen it, where others may read it by its address."""
        if view is not None:
            dims, strides, _ = self.sizes_of[view]
            foreseen = [self.numbers[index] for index in strides]
            if list(result.stride()) != foreseen and result.numel() > 1:
                place = torch.empty_strided(
                    [self.numbers[index] for index in dims], foreseen, dtype=result.dtype, device=result.device
                )
                result = place.copy_(result)
            self.bases[root] = result.data_ptr()
            self.has_moved = True
        self.objects[root] = result

    def free(self, root: int) -> None:
        if root in self.late:
            self.objects.pop(root, None)

    def drop_late(self) -> None:
        for root in self.passing:
            self.objects.pop(root, None)

    def forget(self) -> None:
        self.places.clear()
        self.tensors.clear()

    def fetch(self, value: Any) -> Any:
        """A value with tensors and numbers in place of what stands for them."""
        if isinstance(value, View):
            return self.fetch_tensor(value)
        if isinstance(value, Formula):
            return self.numbers[self.sizes.add(value)]
        if isinstance(value, Late):
            return self.objects[value.root]
        if isinstance(value, dict):
            return {key: self.fetch(item) for key, item in value.items()}
        return [self.fetch(item) for item in value] if isinstance(value, list | tuple) else value

    def fetch_tensor(self, view: View) -> Tensor:
        tensor = self.tensors.get(view)
        if tensor is None:
            tensor = self.make_tensor(view)
            if view.root not in self.passing:
                self.tensors[view] = tensor
        return tensor

    def make_tensor(self, view: View) -> Tensor:
        dims, strides, offset = self.sizes_of[view]
        numbers = self.numbers
        shape, steps = [numbers[index] for index in dims], [numbers[index] for index in strides]
        if view.root in self.places:
            buffer, start = self.places[view.root]
            typed = buffer[: len(buffer) // 64 * 64].view(view.dtype)
            return typed.as_strided(shape, steps, start // view.dtype.itemsize + numbers[offset])
        root: Tensor = self.objects[view.root]
        if list(root.shape) == shape and list(root.stride()) == steps and not numbers[offset]:
            return root
        return root.as_strided(shape, steps, root.storage_offset() + numbers[offset])


def fits_tape(kernel: NativeKernel, name: str, value: object) -> bool:
    """Whether an argument is no tensor, or one that is known by formulas and lies as the kernel wants it."""
    if isinstance(value, list | tuple):
        return all(fits_tape(kernel, name, item) for item in value)
    if not isinstance(value, View):
        return not isinstance(value, Late)
    sizes, strides = ([each.evaluate(TYPICAL) for each in part] for part in (value.dims, value.strides))
    return lies_as_wanted(kernel.spec.wanted[name], value.dtype, sizes, strides)
