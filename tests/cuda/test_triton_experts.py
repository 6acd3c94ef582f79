"""Experts by Triton: against the reference, and compiled."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from runtime.backends.cuda.experts import experts
from runtime.backends.cuda.ops import EXPERTS_SUMMED
from runtime.ops.experts import OP
from tests.cuda.cuda_cases import CUDA_TOLERANCES, check_compiled, every_capability, run_on
from tests.kernels.kernel_cases import random_tensor
from tests.kernels.test_experts import PRECISIONS, ROUTES, list_inputs, make_weights
from tests.tolerances import Tolerance, check_close

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}
TOLERANCES = PRECISIONS | {
    # What stands between an expert's layers is rounded to bf16 before it is quantized.
    "int8": Tolerance(norm=1e-2, bound=1e-1)
}


def make_inputs(rows: int, hidden_size: int, width: int, route: str, precision: str) -> tuple[object, ...]:
    """The arguments of the op, or of that with sums."""
    num_experts, top_k = ROUTES[route]
    is_gated = route != "all"
    x = random_tensor(rows, hidden_size, dtype=TYPES[precision])
    weights = make_weights(num_experts, hidden_size, width, is_gated)
    inputs = list_inputs(x, weights, precision, top_k, "silu" if is_gated else "gelu", is_gated, route == "usual")
    if precision != "int8":
        return inputs
    return *inputs, *(weight.sum(-1, dtype=torch.int32) for weight in inputs[2:4] if isinstance(weight, Tensor))


OTHERS = list(ROUTES)[1:]
SIZES = [(1, 24, 33), pytest.param(40, 33, 20, marks=pytest.mark.slow)]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("route", ["usual", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
@pytest.mark.parametrize(("rows", "hidden_size", "width"), SIZES)
def test_against_reference(
    rows: int, hidden_size: int, width: int, route: str, precision: str, device: torch.device
) -> None:
    check(rows, hidden_size, width, route, precision, device)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_many_rows_get_large_tiles(precision: str, device: torch.device) -> None:
    check(100, 16, 20, "all", precision, device)


def check(rows: int, hidden_size: int, width: int, route: str, precision: str, device: torch.device) -> None:
    inputs = make_inputs(rows, hidden_size, width, route, precision)
    expected = (EXPERTS_SUMMED.target if precision == "int8" else OP)(*inputs)
    found = run_on(device, experts, tuple(expected.shape), expected.dtype, *inputs)
    check_close(found, expected, tolerance=TOLERANCES[precision], what=route)


def test_one_expert_has_all_tokens_and_others_none(device: torch.device) -> None:
    """More of them than a tile has rows."""
    router, up, down = make_weights(6, 16, 8, True)
    x = random_tensor(40, 16)
    x[:, 0] = 9
    router[:, 0] = torch.tensor([-9.0, -9, 30, -9, -9, -9])
    found = run_on(device, experts, (40, 16), torch.float32, x, router, up, down, 1, "silu", True, False)
    gate, other = functional.linear(x, up[2]).chunk(2, 1)
    expected = functional.linear(functional.silu(gate) * other, down[2])
    check_close(found, expected, tolerance=CUDA_TOLERANCES[torch.float32])


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # numpy's word on what the interpreter asks of it
def test_equal_scores_take_the_first_and_nan_stays(device: torch.device) -> None:
    _, up, down = make_weights(4, 16, 8, True)
    x = random_tensor(3, 16)
    x[1, 5] = torch.nan
    args = (x, torch.zeros(4, 16), up, down, 2, "silu", True, False)
    found = run_on(device, experts, (3, 16), torch.float32, *args)
    assert found[1].isnan().all()
    first = OP(x[::2], torch.zeros(2, 16), up[:2], down[:2], 2, "silu", True, True)
    check_close(found[::2] * 2, first, tolerance=CUDA_TOLERANCES[torch.float32])


@pytest.mark.slow
@every_capability
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("route", ["usual", "all"])
@pytest.mark.parametrize("rows", [2, 200])
def test_compiles(rows: int, route: str, precision: str, capability: int) -> None:
    """Few rows of each expert, and many."""
    inputs = make_inputs(rows, 128, 256, route, precision)
    check_compiled(capability, experts, EXPERTS_SUMMED.target if precision == "int8" else OP, *inputs)
