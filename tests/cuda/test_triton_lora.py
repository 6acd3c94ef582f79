"""Low-rank adapters by Triton: against the reference, and compiled."""

import pytest
import torch

from runtime.backends.cuda.lora import lora
from runtime.ops.lora import OP
from tests.cuda.cuda_cases import check_compiled, check_kernel, every_capability, run_on
from tests.cuda.quantized_cases import SOME_DTYPES
from tests.kernels.kernel_cases import random_tensor
from tests.kernels.test_lora import NUM_ADAPTERS, make_inputs


@pytest.mark.parametrize("dtype", SOME_DTYPES, ids=str)
@pytest.mark.parametrize("act", ["none", "gelu"])
@pytest.mark.parametrize(
    ("rows", "rank", "depth", "width"),
    [(1, 1, 5, 3), (6, 4, 33, 50), pytest.param(9, 40, 100, 150, marks=pytest.mark.slow)],
)
def test_against_reference(
    rows: int, rank: int, depth: int, width: int, act: str, dtype: torch.dtype, device: torch.device
) -> None:
    check_kernel(device, lora, OP, *make_inputs(rows, rank, depth, width, dtype), act)


@pytest.mark.parametrize("dtype", SOME_DTYPES, ids=str)
def test_low_rank_rows_that_were_looked_up(dtype: torch.dtype, device: torch.device) -> None:
    rows, x, up, ids, _ = make_inputs(21, 4, 4, 19, dtype)
    check_kernel(device, lora, OP, rows, x, up, ids)


@pytest.mark.parametrize("wrong", [-1, NUM_ADAPTERS + 1])
def test_an_adapter_that_there_is_not(wrong: int, device: torch.device) -> None:
    """What the reference refuses shows in its own row."""
    rows, x, up, ids, down = make_inputs(5, 4, 8, 8, torch.float32)
    ids[3] = wrong
    found = run_on(device, lora, (5, 8), torch.float32, rows, x, up, ids, down)
    assert found.isnan().all(1).tolist() == [row == 3 for row in range(5)] and not found[[0, 1, 2, 4]].isnan().any()


@pytest.mark.slow
@every_capability
@pytest.mark.parametrize("rank", [4, 16, 64, 256])
@pytest.mark.parametrize("has_down", [False, True])
def test_compiles(has_down: bool, rank: int, capability: int) -> None:
    rows = torch.zeros(2, 768, dtype=torch.bfloat16)
    x, down = (rows, random_tensor(2, rank, 768)) if has_down else (rows[:, :rank], None)
    check_compiled(capability, lora, OP, rows, x, random_tensor(2, rank, 768), torch.ones(2, dtype=torch.int64), down)
