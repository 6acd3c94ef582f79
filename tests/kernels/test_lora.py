"""Low-rank adapters against their reference, and that against the formula, by every kernel."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from runtime.ops.lora import OP
from tests.kernels.emulated import COMPILED
from tests.kernels.kernel_cases import (
    DTYPES,
    IMPLEMENTATIONS,
    KERNEL_TOLERANCES,
    find_kernels,
    random_tensor,
    run_kernel,
)
from tests.tolerances import check_close

NUM_ADAPTERS = 3


def make_inputs(num_rows: int, rank: int, depth: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The op's arguments up to `down`; rows of all adapters and of none lie between one another."""
    rows, x = random_tensor(num_rows, width, dtype=dtype), random_tensor(num_rows, depth, dtype=dtype)
    down = random_tensor(NUM_ADAPTERS, rank, depth) / depth**0.5
    return rows, x, random_tensor(NUM_ADAPTERS, rank, width), torch.arange(num_rows) % (NUM_ADAPTERS + 1), down


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", ["none", "gelu"])
@pytest.mark.parametrize(("rows", "rank", "depth", "width"), [(1, 1, 5, 3), (130, 4, 33, 50), (9, 7, 24, 16)])
def test_against_reference(
    rows: int, rank: int, depth: int, width: int, act: str, dtype: torch.dtype, implementation: str
) -> None:
    inputs = make_inputs(rows, rank, depth, width, dtype)
    found = run_kernel(find_kernels(implementation)[OP], (rows, width), dtype, *inputs, act)
    check_close(found, OP(*inputs, act), tolerance=KERNEL_TOLERANCES[dtype], what=act)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_low_rank_rows_that_were_looked_up(implementation: str, dtype: torch.dtype) -> None:
    rows, x, up, ids, _ = make_inputs(21, 4, 4, 19, dtype)
    found = run_kernel(find_kernels(implementation)[OP], (21, 19), dtype, rows, x, up, ids)
    check_close(found, OP(rows, x, up, ids), tolerance=KERNEL_TOLERANCES[dtype])


@pytest.mark.parametrize("implementation", COMPILED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_does_not_depend_on_the_others(implementation: str, dtype: torch.dtype) -> None:
    rows, x, up, ids, down = make_inputs(70, 4, 40, 24, dtype)
    kernel = find_kernels(implementation)[OP]
    together = run_kernel(kernel, (70, 24), dtype, rows, x, up, ids, down, "gelu")
    alone = [run_kernel(kernel, (1, 24), dtype, rows[r:][:1], x[r:][:1], up, ids[r:][:1], down, "gelu") for r in (0, 9)]
    assert torch.equal(torch.cat(alone), together[[0, 9]])
    assert torch.equal(run_kernel(kernel, (70, 24), dtype, rows, x, up, ids * 0, down), rows), "no adapter changes none"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("wrong", [-1, NUM_ADAPTERS + 1])
def test_an_adapter_that_there_is_not(wrong: int, implementation: str) -> None:
    rows, x, up, ids, down = make_inputs(5, 4, 8, 8, torch.float32)
    ids[3] = wrong
    with pytest.raises(IndexError, match="adapter_ids are out of range"):
        find_kernels(implementation)[OP](rows, x, up, ids, down, out=torch.empty_like(rows))


def test_reference_is_a_layer_with_a_merged_weight() -> None:
    """W + B A for each row (Hu et al., 2021: equation 3), whose scale is in `up`."""
    weight = random_tensor(6, 9)
    _, x, up, ids, down = make_inputs(8, 2, 9, 6, torch.float32)
    found = OP(x @ weight.T, x, up, ids, down, "gelu")
    merged = [weight, *(weight + up[i].T @ down[i] for i in range(NUM_ADAPTERS))]
    check_close(found, torch.stack([functional.gelu(merged[i] @ row) for i, row in zip(ids, x, strict=True)]))
