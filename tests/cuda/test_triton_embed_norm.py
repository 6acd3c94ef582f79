"""Embeddings with their norm by Triton: against the reference, and compiled."""

import pytest
import torch
from torch import Tensor

from runtime.backends.cuda.embed_norm import embed_norm
from runtime.ops.embed_norm import OP
from tests.cuda.cuda_cases import check_compiled, check_kernel, every_capability, run_on
from tests.cuda.quantized_cases import SOME_DTYPES
from tests.kernels.kernel_cases import random_tensor

SIZES = (101, 40, 2)
"""Of the tables: words, positions and types."""


def make_arguments(
    num_tables: int, rows: int, width: int, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor, float]:
    tables = [random_tensor(size, width, dtype=dtype) for size in SIZES[:num_tables]]
    indices = [torch.arange(rows) * 7 % size for size in SIZES[:num_tables]]
    return tables, indices, random_tensor(width, seed=1), random_tensor(width, seed=2), 1e-12


@pytest.mark.parametrize("dtype", SOME_DTYPES, ids=str)
@pytest.mark.parametrize("num_tables", [1, 2, 3])
@pytest.mark.parametrize(("rows", "width"), [(1, 16), (70, 24), pytest.param(5, 1000, marks=pytest.mark.slow)])
def test_every_width(rows: int, width: int, num_tables: int, dtype: torch.dtype, device: torch.device) -> None:
    check_kernel(device, embed_norm, OP, *make_arguments(num_tables, rows, width, dtype))


@pytest.mark.parametrize("wrong", [-1, 40, 1 << 40])
def test_an_index_that_there_is_not(wrong: int, device: torch.device) -> None:
    """What the reference refuses shows in its own row."""
    args = make_arguments(3, 9, 24, torch.float32)
    expected = OP(*args)
    args[1][1][4] = wrong
    found = run_on(device, embed_norm, (9, 24), torch.float32, *args)
    assert found[4].isnan().all() and torch.equal(found.isnan().any(1).nonzero(), torch.tensor([[4]]))
    assert torch.allclose(found[:4], expected[:4], atol=1e-5)


@pytest.mark.slow
@every_capability
@pytest.mark.parametrize("num_tables", [1, 2, 3])
@pytest.mark.parametrize("width", [384, 768, 1000, 1024, 8192])
def test_compiles(width: int, num_tables: int, capability: int) -> None:
    check_compiled(capability, embed_norm, OP, *make_arguments(num_tables, 4, width, torch.bfloat16))
