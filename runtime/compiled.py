"""What a model is compiled to: programs with their weights, packed as kernels read them, and what is known of them.

Made once, by `runtime.build`, out of a module; opened by any number of engines, by `runtime.open`. On disk it is one
file whose weights are mapped, so that replicas share them and a start reads only what it touches. The file is this
machine's and this code's own: its name is a hash of everything that it was made from.
"""

import copyreg
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.config import Precision
from runtime.engine import EngineInfo
from runtime.kv_cache.layout import KVLayout
from runtime.memory.lifetimes import BatchShape
from runtime.precision_choice import ChosenPrecision
from runtime.program import Program


@dataclass(frozen=True, slots=True)
class PlannedProgram:
    """One program, and the largest batch that it was planned for."""

    program: Program
    largest: BatchShape
    info: EngineInfo
    cap_bytes: int | None


@dataclass(frozen=True, slots=True)
class OnnxProgram:
    """One graph for ONNX Runtime, and its weights by the names that it has for them."""

    model: bytes
    weights: Mapping[str, Tensor]
    largest: BatchShape
    info: EngineInfo
    num_features: int = 0
    """Numbers of each row of `features`, where it reads such."""


CompiledProgram = PlannedProgram | OnnxProgram


@dataclass(frozen=True, slots=True)
class CompiledModel:
    """`programs` by precision: one, or all that `chosen` uses."""

    programs: Mapping[Precision, CompiledProgram]
    chosen: ChosenPrecision | None = None
    kv_layout: KVLayout | None = None
    """Of generators."""
    draft: "CompiledModel | None" = None
    """A small generator that guesses for this one, `num_drafts` tokens at a time."""
    num_drafts: int = 0
    encoder: CompiledProgram | None = None
    """Of encoder-decoders: what encodes sources into the KV cache."""

    @property
    def only(self) -> CompiledProgram:
        """Where there is one for batches of every size."""
        (planned,) = self.programs.values()
        return planned


def save_compiled(compiled: CompiledModel, path: Path) -> None:
    """Whole or not at all. Raises OSError, RuntimeError where it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(f".{os.getpid()}")
    try:
        torch.save(compiled, written)
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)


def load_compiled(path: Path) -> CompiledModel | None:
    """With its weights mapped from the file. None where there is none that can be read."""
    try:
        compiled = torch.load(path, mmap=True, weights_only=False)
    except (OSError, RuntimeError, EOFError, ValueError, AttributeError, ImportError):
        return None
    return compiled if isinstance(compiled, CompiledModel) else None


def find_op(name: str, overload: str) -> Any:
    """An op of torch by the names of its schema."""
    space, _, op = name.partition("::")
    return getattr(getattr(getattr(torch.ops, space), op), overload)


def reduce_op(op: torch._ops.OpOverload) -> tuple[Any, tuple[str, str]]:
    return find_op, (op._schema.name, op._overloadname)


copyreg.pickle(torch._ops.OpOverload, reduce_op)
