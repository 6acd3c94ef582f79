"""Norms by Triton: against the reference, and compiled."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from runtime.backends.cuda.add_norm import add_norm, layer_norm
from runtime.ops.add_norm import OP
from runtime.ops.quantized_rows import dequantize_rows
from tests.cuda.cuda_cases import CUDA_TOLERANCES, check_compiled, check_kernel, every_capability, run_on
from tests.cuda.quantized_cases import HOW, SOME_DTYPES, check_quantized
from tests.kernels.kernel_cases import random_tensor
from tests.tolerances import check_close

SHAPES = [(1, 16), (7, 384), (140, 24), (5, 80), (3, 1000), pytest.param(2, 4096, marks=pytest.mark.slow)]
ALL_WIDTHS = [16, 64, 384, 768, 1000, 1024, 2048, 4096, 8192, 16384]


def make_arguments(
    rows: int, width: int, dtype: torch.dtype, weight_dtype: torch.dtype = torch.float32, **options: Any
) -> dict[str, Any]:
    x, residual = (random_tensor(rows, width, dtype=dtype, seed=seed) for seed in (1, 2))
    weight, bias = (random_tensor(width, dtype=weight_dtype, seed=seed) for seed in (3, 4))
    return {"x": x, "residual": residual, "weight": weight, "bias": bias, "eps": 1e-5} | options


@pytest.mark.parametrize("dtype", SOME_DTYPES, ids=str)
@pytest.mark.parametrize("is_rms", [False, True])
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_every_width(rows: int, width: int, is_rms: bool, dtype: torch.dtype, device: torch.device) -> None:
    check_kernel(device, add_norm, OP, **make_arguments(rows, width, dtype, is_rms=is_rms))


@pytest.mark.parametrize("without", ["residual", "bias"])
@pytest.mark.parametrize("dtype", SOME_DTYPES, ids=str)
def test_parts_that_are_not_there(without: str, dtype: torch.dtype, device: torch.device) -> None:
    check_kernel(device, add_norm, OP, **make_arguments(9, 40, dtype, dtype) | {without: None})


def test_result_of_another_type(device: torch.device) -> None:
    args = make_arguments(9, 40, torch.float32).values()
    assert check_kernel(device, add_norm, OP, *args, False, torch.bfloat16).dtype == torch.bfloat16


def test_strided_rows_and_heads(device: torch.device) -> None:
    """Columns of a fused result; and its heads, each of which has a norm of its own (Qwen3)."""
    fused = make_arguments(30, 96, torch.float32)
    halves = {"x": fused["x"][:, 48:], "residual": fused["residual"][:, :48]}
    check_kernel(device, add_norm, OP, **fused | halves | {name: fused[name][:48] for name in ("weight", "bias")})
    heads = {"x": fused["x"][:, 32:].unflatten(1, (4, 16)), "residual": None, "weight": fused["weight"][:16]}
    check_kernel(device, add_norm, OP, **fused | heads | {"bias": None, "is_rms": True})


def test_a_large_mean(device: torch.device) -> None:
    """The variance as E[x^2] - E[x]^2 would drown here."""
    arguments = make_arguments(5, 64, torch.float32)
    arguments["x"] = arguments["x"] + 3000
    actual = run_on(device, add_norm, (5, 64), torch.float32, **arguments)
    summed = arguments["x"].double() + arguments["residual"].double()
    exact = functional.layer_norm(summed, (64,), arguments["weight"].double(), arguments["bias"].double(), 1e-5)
    assert (actual - exact).abs().max() < 5e-3


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("is_smooth", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(1, 5), (40, 70)])
def test_quantized(rows: int, width: int, is_smooth: bool, how: str, device: torch.device) -> None:
    smooth = random_tensor(width, seed=1).abs() if is_smooth else None
    args = tuple(make_arguments(rows, width, torch.bfloat16).values())
    check_quantized(device, add_norm, OP, width, *args, False, torch.uint8, smooth, *HOW[how])


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # numpy's word on what the interpreter asks of it
def test_nan_stays_in_its_row(device: torch.device) -> None:
    arguments = make_arguments(5, 40, torch.float32)
    arguments["x"][2, 7] = torch.nan
    found = run_on(device, add_norm, (5, 40), torch.float32, **arguments)
    rows = run_on(device, add_norm, (5, 128), torch.uint8, *arguments.values(), False, torch.uint8)
    for numbers in (found, dequantize_rows(rows, 40)):
        assert numbers.isnan().any(1).tolist() == [row == 2 for row in range(5)]


@pytest.mark.parametrize("dtype", SOME_DTYPES, ids=str)
@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm(affine: bool, dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias = random_tensor(3, 7, 48, dtype=dtype), *(random_tensor(48, seed=seed) for seed in (1, 2))
    parts: tuple[Tensor | None, Tensor | None] = (weight, bias) if affine else (None, None)
    actual = run_on(device, layer_norm, (3, 7, 48), dtype, x, (48,), *parts)
    check_close(actual, functional.layer_norm(x.float(), (48,), *parts), tolerance=CUDA_TOLERANCES[dtype])


@pytest.mark.slow
@every_capability
@pytest.mark.parametrize("width", ALL_WIDTHS)
@pytest.mark.parametrize("dtype", [None, torch.uint8], ids=str)
@pytest.mark.parametrize("is_rms", [False, True])
def test_compiles(is_rms: bool, dtype: torch.dtype | None, width: int, capability: int) -> None:
    arguments = make_arguments(4, width, torch.bfloat16, is_rms=is_rms) | {"dtype": dtype}
    check_compiled(capability, add_norm, OP, **arguments, out_inverse_smooth=torch.ones(width))
