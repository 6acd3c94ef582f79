"""Pooling by Triton: against the reference, and compiled."""

import pytest
import torch

from runtime.backends.cuda.pool import pool
from runtime.ops.pool import OP, POOLINGS
from tests.cuda.cuda_cases import check_compiled, check_kernel, every_capability, run_on
from tests.cuda.quantized_cases import SOME_DTYPES
from tests.kernels.kernel_cases import borders, random_tensor

SEQLENS = [[3, 40, 1], *(pytest.param(seqlens, marks=pytest.mark.slow) for seqlens in ([1], [3, 1, 17, 64, 5]))]


@pytest.mark.parametrize("dtype", SOME_DTYPES, ids=str)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", POOLINGS)
@pytest.mark.parametrize("seqlens", SEQLENS, ids=str)
def test_every_mode(seqlens: list[int], mode: str, normalize: bool, dtype: torch.dtype, device: torch.device) -> None:
    check_kernel(
        device, pool, OP, random_tensor(sum(seqlens), 70, dtype=dtype), borders(seqlens), mode, normalize=normalize
    )


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", POOLINGS)
def test_without_prompts(mode: str, normalize: bool, device: torch.device) -> None:
    """None of a sequence, some and all of it, and more than it has; of rows that lie apart."""
    seqlens, prompts = [5, 1, 30, 24, 3, 70], torch.tensor([2, 0, 29, 24, 5, 31], dtype=torch.int32)
    rows = random_tensor(sum(seqlens), 48)[:, 10:43]
    check_kernel(device, pool, OP, rows, borders(seqlens), mode, normalize, prompts)


@pytest.mark.parametrize("mode", POOLINGS)
def test_nan_stays_in_its_column(mode: str, device: torch.device) -> None:
    rows = random_tensor(12, 24)
    rows[6:, 7] = torch.nan
    found = run_on(device, pool, (2, 24), torch.float32, rows, borders([6, 6]), mode)
    assert found.isnan().nonzero().tolist() == [[1, 7]]


def test_a_sequence_without_tokens_is_zero(device: torch.device) -> None:
    """As those are that fill a bucket up."""
    for mode in POOLINGS:
        found = run_on(device, pool, (3, 24), torch.float32, random_tensor(6, 24), borders([6, 0, 0]), mode, True)
        assert found[0].any() and not found[1:].any()


@pytest.mark.slow
@every_capability
@pytest.mark.parametrize("mode", POOLINGS)
@pytest.mark.parametrize("width", [384, 1000, 4096])
def test_compiles(width: int, mode: str, capability: int) -> None:
    prompts = torch.zeros(4, dtype=torch.int32)
    rows = torch.zeros(4, width, dtype=torch.bfloat16)
    check_compiled(capability, pool, OP, rows, borders([1] * 4), mode, True, prompts)
