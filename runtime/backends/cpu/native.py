"""A compiled kernel under the signature of its op, and how its arguments become the words of a struct."""

import ctypes
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from runtime.backends.cpu.structs import KIND_NUMBERS, MAX_DIMS, TENSOR_WORDS, Field, Struct
from runtime.backends.cpu.table import KernelSpec, Wanted
from runtime.ops.spec import name_arguments

Words = npt.NDArray[np.int64]
Arguments = Mapping[str, Any]


class NativeKernel:
    """A kernel of a library. Called with the op's arguments and `out`, it runs."""

    def __init__(self, library: ctypes.CDLL, spec: KernelSpec) -> None:
        self.spec = spec
        self.struct = spec.struct
        self.function = library[f"padless_{spec.op.name}"]
        self.function.argtypes, self.function.restype = (ctypes.c_void_p,), ctypes.c_int64
        self.address: int = ctypes.cast(self.function, ctypes.c_void_p).value or 0
        self.play = library.padless_run_tape
        """(address of entries, how many of them) to the place of the one that failed, or -1."""
        self.play.argtypes, self.play.restype = (ctypes.c_void_p, ctypes.c_int64), ctypes.c_int64

    def __call__(self, *args: object, out: Tensor, **options: object) -> None:
        """Tensors that do not lie as the kernel wants them are copied for it. Raises as `check` and `fit` do."""
        arguments = {
            name: self.fit(name, value) for name, value in name_arguments(self.spec.op.target, args, options).items()
        }
        if not self.fits("out", out):
            raise ValueError(f"{self.spec.op.name}: out of {out.dtype} {tuple(out.shape)} does not lie dense")
        writer = StructWriter(describe_tensor)
        writer.add(self.struct, {**arguments, "out": out})
        words = writer.finish()
        self.check(self.function(words.ctypes.data))

    def check(self, num_wrong: int) -> None:
        """Raises IndexError where the kernel has found wrong inputs."""
        if num_wrong:
            raise IndexError(f"{num_wrong} of the batch's {self.spec.wrong}")

    def fit(self, name: str, value: object) -> object:
        """A value as the kernel wants it. Raises ValueError where a tensor is of a type that it does not take."""
        if isinstance(value, list):
            return [self.fit(name, item) for item in value]
        if not isinstance(value, Tensor) or self.fits(name, value):
            return value
        wanted = self.spec.wanted[name]
        if value.dtype not in wanted.dtypes and not (value.is_floating_point() and wanted.dtypes == (torch.float32,)):
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in wanted.dtypes)
            raise ValueError(f"{self.spec.op.name}: {name} is {value.dtype}; the kernel takes {known}")
        dtype = value.dtype if value.dtype in wanted.dtypes else torch.float32
        return value.to(dtype).contiguous()

    def fits(self, name: str, tensor: Tensor) -> bool:
        return lies_as_wanted(self.spec.wanted[name], tensor.dtype, tensor.shape, tensor.stride())


def lies_as_wanted(wanted: Wanted, dtype: torch.dtype, sizes: Sequence[int], strides: Sequence[int]) -> bool:
    return dtype in wanted.dtypes and wanted.lies(sizes, strides)


class StructWriter:
    """Structs one behind the other in one array. Mutable: grows.

    `describe(value, place)` gives the words of a tensor, or of what stands for one, that will lie at `place`;
    `number(value, place)` that of a whole number.
    """

    def __init__(
        self,
        describe: Callable[[Any, int], Sequence[int]],
        number: Callable[[Any, int], int] = lambda value, place: int(value),
    ) -> None:
        self.describe = describe
        self.number = number
        self.words: list[int] = []
        self.pointers: list[tuple[int, int]] = []
        """Words that hold the address of another word."""

    def add(self, layout: Struct, arguments: Arguments) -> int:
        """The place of the struct's first word."""
        start = len(self.words)
        self.words += [0] * layout.num_words
        for field in layout.fields:
            value, place = arguments[field.name], start + field.start
            if field.kind == "tensors":
                self.add_tensors(value, place)
            elif field.kind == "tensor":
                words = [] if value is None else self.describe(value, place)
                self.words[place : place + len(words)] = words
            else:
                self.words[place] = self.encode(field, value, place)
        return start

    def add_tensors(self, values: Sequence[object], place: int) -> None:
        """Behind the struct."""
        self.pointers.append((place, len(self.words)))
        self.words[place + 1] = len(values)
        for value in values:
            self.words += [0] * TENSOR_WORDS
            self.words[-TENSOR_WORDS:] = self.describe(value, len(self.words) - TENSOR_WORDS)

    def encode(self, field: Field, value: Any, place: int) -> int:
        if field.words is not None:
            return field.words.values.index(value)
        if field.kind == "float":
            return int.from_bytes(struct.pack("<d", value), "little", signed=True)
        return self.number(value, place)

    def finish(self) -> Words:
        """The array, which must stay where it is."""
        array = np.array(self.words, np.int64)
        for place, target in self.pointers:
            array[place] = array.ctypes.data + 8 * target
        return array


def describe_tensor(x: Tensor, place: int = 0) -> list[int]:
    """Its words in a struct. Raises ValueError where kernels do not know its type."""
    if x.dtype not in KIND_NUMBERS:
        raise ValueError(f"compiled kernels take no {x.dtype}")
    return tensor_words(x.data_ptr(), x.dtype, x.shape, x.stride())


def tensor_words(address: int, dtype: torch.dtype, sizes: Sequence[int], strides: Sequence[int]) -> list[int]:
    rest = [0] * (MAX_DIMS - len(sizes))
    return [address, KIND_NUMBERS[dtype], len(sizes), *sizes, *rest, *strides, *rest]
