"""The gate of a feed-forward block against its reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from runtime.ops.gated_act import OP
from runtime.ops.quantized_rows import dequantize_rows, row_bytes
from tests.kernels.kernel_cases import (
    DTYPES,
    IMPLEMENTATIONS,
    KERNEL_TOLERANCES,
    find_kernels,
    random_tensor,
    run_kernel,
)
from tests.tolerances import Tolerance, check_close

ACTIVATIONS = ["silu", "gelu", "gelu_tanh", "relu"]
A_STEP_APART = Tolerance(norm=5e-3, bound=1e-1)
"""Quantised rows, where a number on the border between two steps falls the other way."""


def check_gate(implementation: str, x: Tensor, act: str) -> None:
    shape = (x.shape[0], x.shape[1] // 2)
    actual = run_kernel(find_kernels(implementation)[OP], shape, x.dtype, x, act)
    check_close(actual, OP(x, act), tolerance=KERNEL_TOLERANCES[x.dtype], what=act)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 17), (9, 64), (700, 40)])
def test_every_activation(rows: int, width: int, act: str, dtype: torch.dtype, implementation: str) -> None:
    check_gate(implementation, random_tensor(rows, 2 * width, dtype=dtype) * 3, act)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@given(st.integers(1, 300), st.integers(1, 70), st.sampled_from(ACTIVATIONS))
@settings(deadline=None, max_examples=50)
def test_any_shape(implementation: str, rows: int, width: int, act: str) -> None:
    check_gate(implementation, random_tensor(rows, 2 * width), act)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_rows(implementation: str, dtype: torch.dtype) -> None:
    check_gate(implementation, random_tensor(300, 100, dtype=dtype)[:, 10:90], "silu")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_fixed", [False, True])
@pytest.mark.parametrize("is_smooth", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(1, 5), (300, 70)])
def test_quantised(
    rows: int, width: int, is_smooth: bool, is_fixed: bool, dtype: torch.dtype, implementation: str
) -> None:
    x = random_tensor(rows, 2 * width, dtype=dtype)
    smooth = random_tensor(width, seed=1).abs() if is_smooth else None
    args = (x, "silu", torch.uint8, smooth, *((0.02, 70) if is_fixed else (0.0, 0)))
    actual = torch.full((rows, row_bytes(width)), 77, dtype=torch.uint8)
    find_kernels(implementation)[OP](*args, out=actual)
    expected = OP(*args)
    check_close(dequantize_rows(actual, width), dequantize_rows(expected, width), tolerance=A_STEP_APART)
    assert (actual.int() - expected.int())[:, :width].abs().max() <= 1


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nan_stays_in_its_place(implementation: str) -> None:
    x = random_tensor(5, 40)
    x[1, 3] = x[2, 20 + 7] = torch.nan
    actual = run_kernel(find_kernels(implementation)[OP], (5, 20), torch.float32, x, "silu")
    assert actual.isnan().nonzero().tolist() == [[1, 3], [2, 7]]


def test_reference_is_the_gate_of_a_feed_forward_block() -> None:
    x = random_tensor(4, 12)
    assert torch.equal(OP(x, "silu"), functional.silu(x[:, :6]) * x[:, 6:])
