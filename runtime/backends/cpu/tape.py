"""Prepared kernels that run one after another in a single call: what `tape.cpp` plays.

A tape is made once for a program. Where its tensors lie and how large they are is put into the structs in place, before
a step that differs from the one before: nothing is made anew for a batch of a new shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from runtime.backends.cpu.native import Arguments, NativeKernel, StructWriter, tensor_words
from runtime.backends.cpu.structs import DATA, SIZES, STRIDES
from runtime.memory.lifetimes import Formula
from runtime.memory.sizes import Numbers, Sizes
from runtime.values import View


@dataclass(slots=True)
class Patches:
    """Which words get what: `places[i]` the number `sources[i]`. Mutable while a tape is written."""

    places: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)

    def add(self, place: int, source: int) -> None:
        self.places.append(place)
        self.sources.append(source)

    def arrays(self) -> tuple[Numbers, Numbers]:
        return np.array(self.places, np.int64), np.array(self.sources, np.int64)


class Tape:
    """`calls`: kernels of one library with their arguments, tensors as Views. `sizes` learns their formulas.

    Mutable: the words of its structs.
    """

    def __init__(self, calls: Sequence[tuple[NativeKernel, Arguments]], sizes: Sizes) -> None:
        self.play = calls[0][0].play
        self.sizes = sizes
        self.kernels = [kernel for kernel, _ in calls]
        numbers, roots, offsets = Patches(), Patches(), Patches()
        self.numbers_to, self.roots_to, self.offsets_to = numbers, roots, offsets
        writer = StructWriter(self.describe, self.number)
        starts = [writer.add(kernel.struct, arguments) for kernel, arguments in calls]
        self.words = writer.finish()
        self.number_places, self.number_sources = numbers.arrays()
        self.address_places, self.address_roots = roots.arrays()
        _, self.address_offsets = offsets.arrays()
        entries = [
            (kernel.address, self.words.ctypes.data + 8 * start)
            for kernel, start in zip(self.kernels, starts, strict=True)
        ]
        self.entries = np.array(entries, np.int64).reshape(-1, 2)

    def describe(self, view: View, place: int) -> list[int]:
        """The words of a tensor; those that differ from batch to batch are remembered."""
        self.roots_to.add(place + DATA, view.root)
        self.offsets_to.add(place + DATA, self.sizes.add(view.offset.times(Formula.constant(view.dtype.itemsize))))
        sizes = [self.number(dim, place + SIZES + index) for index, dim in enumerate(view.dims)]
        strides = [self.number(stride, place + STRIDES + index) for index, stride in enumerate(view.strides)]
        return tensor_words(0, view.dtype, sizes, strides)

    def number(self, value: object, place: int) -> int:
        if not isinstance(value, Formula):
            assert isinstance(value, int)
            return int(value)
        if not value.is_constant:
            self.numbers_to.add(place, self.sizes.add(value))
            return 0
        return value.evaluate(())

    def resize(self, numbers: Numbers) -> None:
        """Tensors are as large as the formulas say now."""
        self.words[self.number_places] = numbers[self.number_sources]

    def place(self, bases: Numbers, numbers: Numbers) -> None:
        """Tensors lie where their roots, by number, lie now."""
        self.words[self.address_places] = bases[self.address_roots] + numbers[self.address_offsets]

    def run(self, first: int, last: int) -> None:
        """The calls [first, last). Raises IndexError where a kernel's inputs are wrong; those behind it do not run."""
        failed = self.play(self.entries.ctypes.data + 16 * first, last - first)
        if failed >= 0:
            kernel = self.kernels[first + failed]
            kernel.check(kernel.function(int(self.entries[first + failed, 1])))
            raise RuntimeError("A kernel has found wrong inputs, and then has not. This is a bug.")
