"""A model as a list of instructions over numbered roots: what engines execute. Plain data, made by `runtime.lower`.

A root is memory of its own: an input, a constant, or what an instruction gives, in a place of the arena or, for ops
without a kernel, in memory that torch allocates. All tensors are views of roots, in shapes that are formulas: slices,
reshapes and sizes are no instructions. Only results in the arena are planned; others are counted, and freed after their
last use.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from runtime.batch import ArraySpec
from runtime.memory.lifetimes import BatchShape, Lifetime, TensorLife, live_peak, size_lifetimes
from runtime.values import View

NUM_SHAPE = len(BatchShape._fields)


@dataclass(frozen=True, slots=True)
class Instruction:
    """`target(*args, **kwargs)` gives the root `root`; what is planned is done by the target's kernel, which is given a
    place as `out`.

    Arguments are literals, Views, Formulas, and lists of these. Afterwards nobody reads the roots in `frees` any more.
    """

    name: str
    kind: str
    """planned; unplanned; or, where shapes are no formulas, view or scalar."""
    target: Callable[..., object]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    root: int
    out: View | None
    """The result as others see it; None where its shape is no formula."""
    frees: tuple[int, ...]
    life: TensorLife | None = None
    """Of tensors with memory of their own; None where the size is no formula."""


@dataclass(frozen=True, slots=True)
class Program:
    """Roots are numbered from 0 to `num_roots`."""

    instructions: tuple[Instruction, ...]
    num_roots: int
    constants: Mapping[int, Tensor]
    inputs: Mapping[str, int]
    """The roots of arguments by name; those that nothing reads are there too."""
    input_dtypes: Mapping[str, torch.dtype]
    """Of those that are tensors."""
    outputs_by_name: Mapping[str, Any]
    """Views, or what an instruction can have as an argument."""
    weight_bytes: int
    outputs: tuple[ArraySpec, ...]
    read_inputs: frozenset[str]
    """The inputs that anything is computed from; `max_seqlen` too."""
    num_features: int = 0
    """Numbers of each row of `features`, where it reads such."""

    @property
    def planned(self) -> tuple[Instruction, ...]:
        """Those whose results lie in the arena, in the order of `lifetimes`."""
        return tuple(instruction for instruction in self.instructions if instruction.kind == "planned")

    @property
    def unplanned(self) -> tuple[Instruction, ...]:
        return tuple(instruction for instruction in self.instructions if instruction.kind == "unplanned")

    @property
    def is_used(self) -> BatchShape:
        """Which numbers of a BatchShape the size of any planned tensor depends on: 1, else 0."""
        powers = [term[1:] for each in self.planned if each.life for term in each.life.num_bytes.terms]
        columns = list(zip_longest(*powers, (0,) * NUM_SHAPE, fillvalue=0))[:NUM_SHAPE]
        return BatchShape(*(int(any(column)) for column in columns))

    def lifetimes(self, shape: BatchShape) -> list[Lifetime]:
        return size_lifetimes((each.life for each in self.planned if each.life), shape)

    def unplanned_bytes(self, shape: BatchShape) -> int:
        """What torch allocates beside the arena at most at one time."""
        lives = [instruction.life for instruction in self.unplanned if instruction.life is not None]
        return live_peak(size_lifetimes(lives, shape))


def share_constants(program: Program, other: Program) -> Program:
    """The program with the other's tensors in place of equal ones of its own: a table that both read is there once, and
    counts as the other's."""
    theirs = list({id(value): value for value in other.constants.values()}.values())
    shared = {
        root: next((each for each in theirs if are_equal(value, each)), value)
        for root, value in program.constants.items()
    }
    ids = {id(value) for value in theirs}
    own = [value for value in shared.values() if id(value) not in ids]
    return replace(program, constants=shared, weight_bytes=sum_weights(own))


def sum_weights(constants: Iterable[Tensor]) -> int:
    """Bytes; those that share memory are counted once."""
    storages = [value.untyped_storage() for value in constants]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def are_equal(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype) and torch.equal(
        one, other
    )
