"""Triton's kernels on the CPU: each tensor of a program as numpy's.

Whether a function is compiled or interpreted Triton decides where it is decorated, by the environment of the process.
Here both are wanted in one process. So functions are decorated to be compiled, and stand in their modules, under the
same names, as interpreted ones for as long as a test runs.

Triton's interpreter cuts fp32 off where devices round it to bf16, and multiplies the bits of bf16 matrices as if they
were integers; what rounds up to a power of two it spoils in e4m3; and it asks more of numpy than numpy 2.4 does. All
that is put right here. Other arithmetic on bf16 would be on bits too: kernels compute in fp32.
"""

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle
from triton.runtime.jit import JITFunction

KERNELS = "runtime.backends.cuda."

# Triton loads it at the first launch of all, and then must find no interpreted functions in its language.
importlib.import_module("triton.experimental.gluon")


class Interpreted(InterpretedFunction):  # type: ignore[misc, type-arg]
    """A kernel, or a function that one calls. Triton's own would patch its language anew for each call."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.rewrite()(*args, **options)


CAST, DOT = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot
FP_TO_FP = InterpreterBuilder.create_fp_to_fp
PATCH_TENSOR = interpreter._patch_lang_tensor


def cast(builder: InterpreterBuilder, source: TensorHandle, wanted: tl.dtype) -> TensorHandle:
    """In place of InterpreterBuilder.cast_impl."""
    given, wanted = source.dtype.scalar, wanted.scalar
    if given == wanted or tl.bfloat16 not in (given, wanted):
        return CAST(builder, source, wanted)
    if given == tl.bfloat16:
        exact = TensorHandle(widen(source.data), tl.float32)
        return exact if wanted == tl.float32 else CAST(builder, exact, wanted)
    exact = source if given == tl.float32 else CAST(builder, source, tl.float32)
    return TensorHandle(narrow(exact.data), wanted)


def dot(builder: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
    """In place of InterpreterBuilder.create_dot."""
    a, b = (TensorHandle(WIDEN[x.dtype.scalar](x.data), tl.float32) if x.dtype.scalar in WIDEN else x for x in (a, b))
    return DOT(builder, a, b, *rest)


def round_to_fp8(
    builder: InterpreterBuilder, source: TensorHandle, wanted: tl.dtype, rounding_mode: Any
) -> TensorHandle:
    """In place of InterpreterBuilder.create_fp_to_fp."""
    if (source.dtype.scalar, wanted.scalar) != (tl.float32, tl.float8e4nv):
        return FP_TO_FP(builder, source, wanted, rounding_mode)
    values = torch.from_numpy(np.ascontiguousarray(source.data)).to(torch.float8_e4m3fn)
    return TensorHandle(values.view(torch.uint8).numpy(), tl.float8e4nv)


def patch_tensor(tensor: type, scope: Any) -> None:
    """In place of interpreter._patch_lang_tensor: a number is an array of one, which is no int to numpy any more."""
    PATCH_TENSOR(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda number: int(number.handle.data.item()))


def widen(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """bf16 as fp32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def widen_fp8(bits: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """e4m3 as fp32."""
    values: npt.NDArray[np.float32] = (
        torch.from_numpy(np.ascontiguousarray(bits)).view(torch.float8_e4m3fn).float().numpy()
    )
    return values


WIDEN = {tl.bfloat16: widen, tl.float8e4nv: widen_fp8}
"""Types that numpy has not, as fp32."""


def narrow(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """To the nearest bf16, to the even one of two; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def list_modules() -> list[ModuleType]:
    """Those that our kernels are in."""
    return [module for name, module in list(sys.modules.items()) if name.startswith(KERNELS)]


@contextmanager
def interpreted() -> Iterator[None]:
    """Launchers of modules that are imported already take tensors of the CPU."""
    found: dict[
        Any, Interpreted
    ] = {}  # not by JITFunction: to hash one reads what it refers to, which is replaced here
    # numpy warns of what devices compute without a word, as of NaN and of logarithms of 0.
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        patch.setattr(InterpreterBuilder, "cast_impl", cast)
        patch.setattr(InterpreterBuilder, "create_dot", dot)
        patch.setattr(InterpreterBuilder, "create_fp_to_fp", round_to_fp8)
        patch.setattr(interpreter, "_patch_lang_tensor", patch_tensor)
        for module in list_modules():
            # The interpreter patches the modules of the language that a kernel's own has names for.
            patch.setattr(module, "_core", tl.core, raising=False)
        for module in [tl, tl.standard, *list_modules()]:
            for name, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    patch.setattr(module, name, found.setdefault(value.fn, Interpreted(value.fn)))
        yield
