"""Neighbours side by side: every implementation against its reference, and a linear layer over them against conv1d."""

import pytest
import torch
from torch.nn import functional

from runtime.ops.unfold import OP
from tests.kernels.kernel_cases import (
    DTYPES,
    IMPLEMENTATIONS,
    SEQLENS,
    borders,
    find_kernels,
    random_tensor,
    run_kernel,
)
from tests.tolerances import check_close


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel_size", [1, 3, 9])
@pytest.mark.parametrize("name", SEQLENS)
def test_every_shape(implementation: str, name: str, kernel_size: int, dtype: torch.dtype) -> None:
    """Rows of a wider matrix, and lengths below the kernel's size."""
    rows = random_tensor(sum(SEQLENS[name]), 24, dtype=dtype)[:, 3:15]
    cu_seqlens = borders(SEQLENS[name])
    shape = (len(rows), kernel_size * 12)
    actual = run_kernel(find_kernels(implementation)[OP], shape, dtype, rows, cu_seqlens, kernel_size)
    assert torch.equal(actual, OP(rows, cu_seqlens, kernel_size))


def test_linear_over_it_is_a_convolution_of_each_sequence() -> None:
    seqlens, weight = [5, 1, 9], random_tensor(8, 12, 3)
    rows = random_tensor(15, 12)
    unfolded = OP(rows, borders(seqlens), 3)
    actual = functional.linear(unfolded, weight.permute(0, 2, 1).flatten(1))
    expected = [functional.conv1d(part.t()[None], weight, padding=1)[0].t() for part in rows.split(seqlens)]
    check_close(actual, torch.cat(expected))
