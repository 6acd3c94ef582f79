"""Gates by Triton: against the reference, and compiled."""

import pytest
import torch

from runtime.backends.cuda.gated_act import gated_act
from runtime.ops.gated_act import OP
from runtime.ops.linear_act import ACTIVATIONS
from runtime.ops.quantized_rows import dequantize_rows
from tests.cuda.cuda_cases import check_compiled, check_kernel, every_capability, run_on
from tests.cuda.quantized_cases import HOW, SOME_DTYPES, check_quantized
from tests.kernels.kernel_cases import random_tensor


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of numpy's; a device gives infinity
@pytest.mark.parametrize("dtype", SOME_DTYPES, ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "width"), [(3, 17), pytest.param(2, 1100, marks=pytest.mark.slow)])
def test_every_activation(rows: int, width: int, act: str, dtype: torch.dtype, device: torch.device) -> None:
    check_kernel(device, gated_act, OP, random_tensor(rows, 2 * width, dtype=dtype) * 3, act)


def test_strided_rows(device: torch.device) -> None:
    check_kernel(device, gated_act, OP, random_tensor(30, 100)[:, 10:90], "silu")


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("is_smooth", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(3, 5), (1, 4200)])
def test_quantized(rows: int, width: int, is_smooth: bool, how: str, device: torch.device) -> None:
    x = random_tensor(rows, 2 * width, dtype=torch.bfloat16)
    smooth = random_tensor(width, seed=1).abs() if is_smooth else None
    check_quantized(device, gated_act, OP, width, x, "silu", torch.uint8, smooth, *HOW[how])


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # numpy's word on what the interpreter asks of it
def test_nan_stays_in_its_place(device: torch.device) -> None:
    x = random_tensor(5, 40)
    x[1, 3] = x[2, 20 + 7] = torch.nan
    found = run_on(device, gated_act, (5, 20), torch.float32, x, "silu")
    assert found.isnan().nonzero().tolist() == [[1, 3], [2, 7]]
    rows = run_on(device, gated_act, (5, 128), torch.uint8, x, "silu", torch.uint8)
    assert dequantize_rows(rows, 20).isnan().all(1).tolist() == [False, True, True, False, False]


@pytest.mark.slow
@every_capability
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("width", [64, 1536, 14336])
@pytest.mark.parametrize("dtype", [None, torch.uint8], ids=str)
def test_compiles(dtype: torch.dtype | None, width: int, act: str, capability: int) -> None:
    x = torch.empty(4, 2 * width, dtype=torch.bfloat16, device="meta")
    check_compiled(capability, gated_act, OP, x, act, dtype)
