"""Quantized rows as results of Triton's kernels, and the types of others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from runtime.backends.backend import Kernel
from runtime.ops.quantized_rows import dequantize_rows, padded_width
from tests.cuda.cuda_cases import run_on
from tests.tolerances import Tolerance, check_close

SOME_DTYPES = [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow), torch.bfloat16]
"""fp16 takes the same way as bf16."""
A_STEP_APART = Tolerance(norm=5e-3, bound=1e-1)
"""A number on the border between two steps falls the other way."""
HOW = {
    "own ranges": (0.0, 0),
    "fixed": (0.02, 70),
}
"""Scale and zero point of the result."""


def check_quantized(
    device: torch.device, kernel: Kernel, op: Callable[..., Tensor], width: int, *args: Any
) -> tuple[Tensor, Tensor]:
    """Against the op's reference: its rows of `width` numbers, and all their bytes; both as numbers."""
    expected = op(*args)
    actual = run_on(device, kernel, tuple(expected.shape), torch.uint8, *args)
    assert (actual.int() - expected.int())[:, :width].abs().max() <= 1
    padded = padded_width(width)
    assert not actual[:, width:padded].any() and not actual[:, padded + 8 :].any()
    numbers = dequantize_rows(actual, width), dequantize_rows(expected, width)
    check_close(*numbers, tolerance=A_STEP_APART)
    return numbers
