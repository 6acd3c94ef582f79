"""Rotary positions by Triton: against the reference, and compiled."""

import pytest
import torch
from torch import Tensor

from runtime.backends.cuda.rotate import rotate
from runtime.ops.rotate import OP
from tests.cuda.cuda_cases import DTYPES, check_compiled, check_kernel, every_capability
from tests.kernels.kernel_cases import random_tensor

OTHERS = [torch.float32, torch.bfloat16]
WIDTHS = [(64, 64), (80, 80), (20, 20), (64, 16), (12, 6), (256, 128)]


def make_arguments(head_dim: int, rotary_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Of which the heads are a slice of one fused tensor."""
    fused = random_tensor(37, 5 * head_dim, dtype=dtype)
    x = fused[:, head_dim : 4 * head_dim].view(37, 3, head_dim)
    return x, torch.arange(37) % 11, random_tensor(11, rotary_dim)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("head_dim", "rotary_dim"), WIDTHS)
def test_every_width(head_dim: int, rotary_dim: int, dtype: torch.dtype, device: torch.device) -> None:
    args = make_arguments(head_dim, rotary_dim, dtype)
    actual = check_kernel(device, rotate, OP, *args)
    assert torch.equal(actual[..., rotary_dim:], args[0][..., rotary_dim:])


@every_capability
@pytest.mark.parametrize(
    "dtype", [torch.float16, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in OTHERS)], ids=str
)
@pytest.mark.parametrize(
    ("head_dim", "rotary_dim"), [WIDTHS[0], *(pytest.param(*widths, marks=pytest.mark.slow) for widths in WIDTHS[1:])]
)
def test_compiles(head_dim: int, rotary_dim: int, dtype: torch.dtype, capability: int) -> None:
    check_compiled(capability, rotate, OP, *make_arguments(head_dim, rotary_dim, dtype))
