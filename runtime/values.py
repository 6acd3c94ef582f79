"""What instructions compute with: tensors known by root and shape, and what is only known once it is there."""

from dataclasses import dataclass

import torch

from runtime.memory.lifetimes import Formula


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A tensor in the memory of `root`, a number of the program's: an input, a constant, or an instruction's result.

    `offset`: of its first element from the root's, in elements.
    """

    root: int
    dtype: torch.dtype
    dims: tuple[Formula, ...]
    strides: tuple[Formula, ...]
    offset: Formula


@dataclass(frozen=True, slots=True)
class Late:
    """Whatever the step has put at `root`: a tuple, or a tensor whose shape is no formula of the batch's."""

    root: int
