"""How an op of ours is defined: once, by its reference implementation.

torch's schema follows from the reference's signature; passes read and write a call's arguments by its names
(`passes/rewriting.py`), and the structs that compiled kernels take are laid out after it (`backends/cpu/structs.py`).
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Words:
    """The values of arguments that are words, in the order of the numbers that kernels know them by."""

    name: str
    values: tuple[str, ...]


NO_WORDS: Mapping[str, Words] = {}


@dataclass(frozen=True, slots=True)
class Op:
    """An op under `padless::`. `target` is what stands in graphs."""

    target: torch._ops.OpOverload
    words: Mapping[str, Words]
    """By the names of the arguments."""

    @property
    def name(self) -> str:
        return self.target._schema.name.removeprefix("padless::")


def define_op(
    reference: Callable[..., Tensor],
    shape: Callable[..., Tensor],
    *,
    mutates: Sequence[str] = (),
    words: Mapping[str, Words] = NO_WORDS,
) -> Op:
    """Register `padless::` and the reference's name with torch.

    `shape` makes an empty result from those of the reference's arguments that it names itself.
    """
    name = f"padless::{reference.__name__}"
    schema = torch.library.infer_schema(reference, mutates_args=mutates)
    torch.library.define(name, schema)
    torch.library.impl(name, "CompositeExplicitAutograd", reference)
    signature, wanted = inspect.signature(reference), inspect.signature(shape).parameters

    def fake(*args: object, **options: object) -> Tensor:
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        return shape(**{key: bound.arguments[key] for key in wanted})

    torch.library.register_fake(name)(fake)
    target = getattr(torch.ops.padless, reference.__name__).default
    return Op(target, words)


def name_arguments(target: Any, args: Sequence[object], options: Mapping[str, object]) -> dict[str, Any]:
    """A call's arguments by the names of its op's schema, defaults included. Raises TypeError where one is missing."""
    schema = target._schema.arguments
    given = dict(zip((argument.name for argument in schema), args, strict=False)) | dict(options)
    for argument in schema:
        if argument.name not in given:
            if not argument.has_default_value():
                raise TypeError(f"{target._schema.name.rpartition(':')[2]} lacks its argument {argument.name}")
            given[argument.name] = argument.default_value
    return given
