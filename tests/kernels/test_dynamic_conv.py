"""Convolutions with kernels of each token's own, or one for all, against their reference, and that against conv1d."""

import pytest
import torch
from torch.nn import functional

from runtime.ops.dynamic_conv import OP
from tests.kernels.kernel_cases import (
    DTYPES,
    IMPLEMENTATIONS,
    KERNEL_TOLERANCES,
    SEQLENS,
    borders,
    find_kernels,
    random_tensor,
    run_kernel,
)
from tests.tolerances import check_close


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_heads", "head_dim", "kernel_size"), [(24, 1, 3), (3, 20, 9)])
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("name", ["one token", "mixed"])
def test_every_form(
    implementation: str,
    name: str,
    is_shared: bool,
    softmax: bool,
    num_heads: int,
    head_dim: int,
    kernel_size: int,
    dtype: torch.dtype,
) -> None:
    """Values are columns of a wider matrix."""
    num_tokens, width = sum(SEQLENS[name]), num_heads * head_dim
    values = random_tensor(num_tokens, 2 * width, dtype=dtype)[:, 3 : 3 + width]
    kernels = random_tensor(1 if is_shared else num_tokens, num_heads * kernel_size, dtype=dtype)
    args = (values, kernels, borders(SEQLENS[name]), kernel_size, softmax)
    actual = run_kernel(find_kernels(implementation)[OP], (num_tokens, width), dtype, *args)
    check_close(actual, OP(*args), tolerance=KERNEL_TOLERANCES[dtype])


def test_one_kernel_for_all_is_a_depthwise_convolution() -> None:
    seqlens, weight = [5, 1, 9], random_tensor(12, 1, 3)
    values = random_tensor(15, 12)
    actual = OP(values, weight.view(1, -1), borders(seqlens), 3)
    expected = [
        functional.conv1d(part.t()[None], weight, padding=1, groups=12)[0].t() for part in values.split(seqlens)
    ]
    check_close(actual, torch.cat(expected))


def test_heads_have_kernels_of_their_own() -> None:
    """Each token's add up to 1."""
    values, kernels = random_tensor(4, 6), random_tensor(4, 2 * 3)
    actual = OP(values, kernels, borders([4]), 3, True)
    padded = functional.pad(values, (0, 0, 1, 1))
    for token in range(4):
        for head in range(2):
            weights = kernels[token, 3 * head : 3 * head + 3].softmax(0)
            columns = slice(3 * head, 3 * head + 3)
            check_close(actual[token, columns], weights @ padded[token : token + 3, columns])
