"""Linear layers over packed bf16 weights: in every form right, and a row's result its own."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from runtime.backends.cpu.layouts import pack_bf16, pad_bias
from runtime.backends.cpu.ops import LINEAR_ACT_PACKED
from runtime.ops import linear_act
from runtime.ops.linear_act import ACTIVATIONS
from tests.kernels.emulated import COMPILED
from tests.kernels.kernel_cases import DTYPES, KERNEL_TOLERANCES, find_kernels, random_tensor, run_kernel
from tests.tolerances import check_close

FP32, BF16 = torch.float32, torch.bfloat16
pytestmark = pytest.mark.skipif(not COMPILED, reason="a CPU without AVX2")
ROWS = [1, 2, 5, 6, 10, 11, 16, 17, 48, 49, 200]
"""Tiles and a row more, where weights begin to be widened, a block and a row more, several blocks."""
SIZES = [(1, 1), (33, 17), (64, 16), (70, 400), (1056, 20)]
"""(in, out): less than a panel and a tile, not a multiple of one, a group and a bit, deeper than one pass over k."""


def make_weight(sizes: tuple[int, int]) -> Tensor:
    """In bf16, [out, in]."""
    return random_tensor(sizes[1], sizes[0], dtype=BF16, seed=1) / sizes[0] ** 0.5


def run_linear(
    isa: str, x: Tensor, weight: Tensor, dtype: torch.dtype, act: str = "none", residual: Tensor | None = None
) -> Tensor:
    """With a bias, and against the same in fp32, which holds the products of bf16 exactly."""
    bias = random_tensor(len(weight), seed=2)
    args = (x, pack_bf16(weight), len(weight), pad_bias(bias), act, residual)
    actual = run_kernel(find_kernels(isa)[LINEAR_ACT_PACKED.target], (len(x), len(weight)), dtype, *args)
    wide = None if residual is None else residual.float()
    expected = linear_act.OP(x.float(), weight.float(), bias, act, wide).to(dtype)
    check_close(actual, expected, tolerance=KERNEL_TOLERANCES[dtype], what="bf16 linear")
    return actual


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_every_shape(rows: int, sizes: tuple[int, int], isa: str) -> None:
    run_linear(isa, random_tensor(rows, sizes[0], dtype=BF16), make_weight(sizes), FP32)


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("rows", ROWS)
def test_two_threads_give_what_one_does(rows: int, isa: str, request: pytest.FixtureRequest) -> None:
    args = (isa, random_tensor(rows, 70, dtype=BF16), make_weight((70, 400)), FP32)
    expected = run_linear(*args)
    request.getfixturevalue("two_threads")
    assert torch.equal(run_linear(*args), expected)


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_activation_with_residual(act: str, dtype: torch.dtype, isa: str) -> None:
    x, residual = random_tensor(50, 40, dtype=BF16), random_tensor(50, 33, dtype=dtype, seed=3)
    run_linear(isa, x, make_weight((40, 33)), dtype, act, residual)


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("depth", [31, 32, 33, 64])
def test_rows_in_fp32_are_those_in_bf16(depth: int, isa: str) -> None:
    """As slices of wider ones, where they lie: what stands behind a row is not read."""
    x = torch.full((20, 80), torch.nan, dtype=BF16)
    x[:, :depth] = random_tensor(20, depth, dtype=BF16)
    weight = make_weight((depth, 40))
    half, whole = (run_linear(isa, rows[:, :depth], weight, FP32) for rows in (x, x.float()))
    assert torch.equal(half, whole)


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(70, 90), (1056, 40)], ids=str)
def test_row_alone_is_the_same_as_among_others(sizes: tuple[int, int], dtype: torch.dtype, isa: str) -> None:
    """Bit for bit, whichever way weights are widened."""
    x, weight = random_tensor(200, sizes[0], dtype=BF16), make_weight(sizes)
    whole = run_linear(isa, x, weight, dtype, "gelu")
    for rows in [*range(1, 41), 48, 49, 99]:
        first = 3 * rows % (200 - rows)
        part = run_linear(isa, x[first : first + rows], weight, dtype, "gelu")
        assert torch.equal(part, whole[first : first + rows]), rows


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("rows", [4, 60])
def test_nan_stays_in_its_row(rows: int, isa: str) -> None:
    x = random_tensor(rows, 32, dtype=BF16)
    x[2, 7] = torch.nan
    args = (x, pack_bf16(make_weight((32, 20))), 20, None, "gelu")
    actual = run_kernel(find_kernels(isa)[LINEAR_ACT_PACKED.target], (rows, 20), FP32, *args)
    assert actual.isnan().any(1).tolist() == [row == 2 for row in range(rows)]


def test_packed_panels_hold_pairs_of_depth() -> None:
    weight = torch.arange(18 * 3, dtype=FP32).view(18, 3)
    packed = pack_bf16(weight)
    assert packed.shape == (2, 16, 16, 2) and packed.dtype == BF16
    assert packed[0, 0, 5].tolist() == weight[5, :2].tolist()
    assert packed[0, 1, 5].tolist() == [weight[5, 2], 0] and packed[1, 0, 1].tolist() == weight[17, :2].tolist()
    assert not packed[:, 2:].any() and not packed[1, :, 2:].any()
