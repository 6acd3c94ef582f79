"""GELU for each type of result: no further from x * Phi(x) than that type rounds."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from runtime.ops.gated_act import OP
from runtime.ops.quantized_rows import dequantize_rows, row_bytes
from tests.kernels.emulated import COMPILED
from tests.kernels.kernel_cases import find_kernels, run_kernel

NUMBERS = torch.linspace(-9, 9, 18_001)
STEP = 2.0**-7
"""Of quantised rows here: finer ones do not reach from the least to the greatest."""

pytestmark = [
    pytest.mark.skipif(not COMPILED, reason="no compiled kernels"),
    pytest.mark.parametrize("isa", COMPILED),
]


def gate_by_ones(x: Tensor) -> Tensor:
    """What `gated_act` makes GELU alone of."""
    return torch.stack([x, torch.ones_like(x)], dim=1)


def relative_errors(actual: Tensor, x: Tensor) -> Tensor:
    expected = functional.gelu(x.double())
    return ((actual.double() - expected) / expected).abs()[x != 0]


def test_fp32(isa: str) -> None:
    actual = run_kernel(find_kernels(isa)[OP], (len(NUMBERS), 1), torch.float32, gate_by_ones(NUMBERS), "gelu")[:, 0]
    errors, x = relative_errors(actual, NUMBERS), NUMBERS[NUMBERS != 0]
    assert errors[x > -1].max() < 1e-6
    assert errors[x > -3].max() < 1e-4
    assert (actual.double() - functional.gelu(NUMBERS.double())).abs().max() < 5e-6


def test_bf16(isa: str) -> None:
    """Rounding alone gives 2^-8."""
    x = torch.unique(NUMBERS.bfloat16().float())
    args = (gate_by_ones(x).bfloat16(), "gelu")
    actual = run_kernel(find_kernels(isa)[OP], (len(x), 1), torch.bfloat16, *args)[:, 0]
    errors, others = relative_errors(actual, x), x[x != 0]
    assert errors[others > -3.5].max() < 2.0**-8 + 1.2e-3
    assert actual[x < -3.5].abs().max() < 9e-4
    assert (actual.double() - functional.gelu(x.double())).abs()[x < -3.5].max() < 1.3e-4


def test_bytes(isa: str) -> None:
    x = NUMBERS[NUMBERS.abs() < 1.7]
    out = torch.empty(len(x), row_bytes(1), dtype=torch.uint8)
    find_kernels(isa)[OP](gate_by_ones(x), "gelu", torch.uint8, None, STEP, 24, out=out)
    actual = dequantize_rows(out, 1)[:, 0]
    assert (actual.double() - functional.gelu(x.double())).abs().max() < STEP / 2 + 3e-4
