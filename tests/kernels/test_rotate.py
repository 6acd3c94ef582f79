"""Rotary positions by every implementation, of heads that are slices of a fused tensor."""

import pytest
import torch

from runtime.ops.rotate import OP
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


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (80, 80), (20, 20), (64, 16), (12, 6)])
def test_every_width(implementation: str, head_dim: int, rotary_dim: int, dtype: torch.dtype) -> None:
    fused = random_tensor(37, 5 * head_dim, dtype=dtype)
    x = fused[:, head_dim : 4 * head_dim].view(37, 3, head_dim)
    position_ids, table = torch.arange(37) % 11, random_tensor(11, rotary_dim)
    actual = run_kernel(find_kernels(implementation)[OP], tuple(x.shape), dtype, x, position_ids, table)
    check_close(actual, OP(x, position_ids, table), tolerance=KERNEL_TOLERANCES[dtype], what="rotated")
    torch.testing.assert_close(actual[..., rotary_dim:], x[..., rotary_dim:])


def test_reference_turns_pairs_by_an_angle() -> None:
    """Element i with the one half of the turned ones further on: lengths stay, and so do products of equal turns."""
    x, angles = random_tensor(4, 1, 6), torch.tensor([[0.0, 0.3, -1.2]]).repeat(4, 1) * torch.arange(4)[:, None]
    found = OP(x, torch.arange(4), torch.cat([angles.cos(), angles.sin()], 1))
    pairs, turned = torch.complex(x[..., :3], x[..., 3:]), torch.complex(found[..., :3], found[..., 3:])
    torch.testing.assert_close(turned, pairs * torch.polar(torch.ones_like(angles), angles)[:, None])


@pytest.mark.parametrize("implementation", COMPILED)
def test_positions_out_of_the_table_are_refused(implementation: str) -> None:
    x = random_tensor(2, 1, 8)
    with pytest.raises(IndexError, match="positions are out of the table"):
        find_kernels(implementation)[OP](x, torch.tensor([0, 5]), random_tensor(5, 8), out=torch.empty_like(x))
