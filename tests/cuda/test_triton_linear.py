"""Linear layers by Triton, in 16 bits and in int8: against the references, and compiled."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from runtime.backends.cuda import gemm
from runtime.backends.cuda.gemm import TILES, GemmTile, choose_tile
from runtime.backends.cuda.linear_act import MAX_DEPTH, MIN_ROWS, linear_act
from runtime.backends.cuda.linear_int8 import linear_int8_summed
from runtime.backends.cuda.ops import LINEAR_INT8_SUMMED
from runtime.ops import linear_act as linear_act_op
from runtime.ops.quantized_rows import quantize_rows
from tests.cuda.cuda_cases import check_compiled, check_kernel, every_capability, run_on
from tests.cuda.quantized_cases import HOW, check_quantized
from tests.kernels.kernel_cases import random_tensor

OP, INT8 = linear_act_op.OP, LINEAR_INT8_SUMMED.target


BETWEEN = [pytest.param(tile, marks=pytest.mark.slow) for tile in TILES[1:-1]]


@pytest.fixture(params=[TILES[0], *BETWEEN, TILES[-1]], ids=lambda tile: f"{tile.rows}x{tile.columns}")
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[GemmTile]:
    """Whatever is multiplied."""
    monkeypatch.setattr(gemm, "choose_tile", lambda *_: request.param)
    yield request.param


def make_linear(rows: int, depth: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    weight = random_tensor(width, depth, dtype=dtype, seed=1) / depth**0.5
    return random_tensor(rows, depth, dtype=dtype), weight, random_tensor(width, dtype=dtype)


def make_int8(depth: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, the sums of its columns, its scales."""
    weight = (random_tensor(width, depth, seed=1) * 40).clamp(-127, 127).to(torch.int8)
    return weight, weight.sum(1, dtype=torch.int32), random_tensor(width).abs() / 40 / depth**0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize(("rows", "depth", "width"), [(130, 80, 150), pytest.param(64, 16, 33, marks=pytest.mark.slow)])
def test_every_tile(
    rows: int, depth: int, width: int, dtype: torch.dtype, tile: GemmTile, device: torch.device
) -> None:
    residual = random_tensor(rows, width, dtype=dtype)
    check_kernel(device, linear_act, OP, *make_linear(rows, depth, width, dtype), "gelu", residual)


@pytest.mark.parametrize("act", linear_act_op.ACTIVATIONS)
@pytest.mark.parametrize("has_bias", [False, True])
def test_every_activation(act: str, has_bias: bool, device: torch.device) -> None:
    x, weight, bias = make_linear(64, 48, 24, torch.bfloat16)
    check_kernel(device, linear_act, OP, x, weight, bias if has_bias else None, act)


@pytest.mark.parametrize("is_transposed", [False, True])
def test_strided_rows_and_transposed_weights(is_transposed: bool, device: torch.device) -> None:
    x, weight, bias = make_linear(70, 96, 24, torch.bfloat16)
    weight = weight[:, :32].t().contiguous().t() if is_transposed else weight[:, 32:64]
    check_kernel(device, linear_act, OP, x[:, 48:80], weight, bias, "relu")


@pytest.mark.parametrize("types", [(torch.bfloat16, torch.float32), (torch.float32, torch.float32)], ids=str)
@pytest.mark.parametrize("shape", [(5,), (2, 3)], ids=str)
def test_what_torch_multiplies(
    shape: tuple[int, ...], types: tuple[torch.dtype, torch.dtype], device: torch.device
) -> None:
    """Few rows, fp32, weights of another type; of more dimensions."""
    x, (_, weight, bias) = random_tensor(*shape, 24, dtype=types[0]), make_linear(1, 24, 40, types[1])
    residual = random_tensor(*shape, 40, dtype=types[0]) if len(shape) == 1 else None
    check_kernel(device, linear_act, OP, x, weight, bias, "gelu", residual)


@pytest.mark.parametrize(("rows", "depth", "width"), [(1, 40, 33), pytest.param(20, 136, 70, marks=pytest.mark.slow)])
def test_int8_by_every_tile(rows: int, depth: int, width: int, tile: GemmTile, device: torch.device) -> None:
    x, smooth = random_tensor(rows, depth, dtype=torch.bfloat16), random_tensor(depth, seed=2).abs() + 0.1
    residual = random_tensor(rows, width)
    check_kernel(
        device, linear_int8_summed, INT8, x, *make_int8(depth, width), random_tensor(width), "gelu", residual, smooth
    )


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_quantized", [False, True])
def test_int8_with_a_known_range(is_quantized: bool, dtype: torch.dtype | None, device: torch.device) -> None:
    x = random_tensor(9, 70)
    rows = quantize_rows(x, None, 0.03, 120) if is_quantized else x
    check_kernel(device, linear_int8_summed, INT8, rows, *make_int8(70, 20), None, "none", None, None, 0.03, 120, dtype)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("is_smooth", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(1, 5), (3, 70)])
def test_int8_for_the_next_layer(rows: int, width: int, is_smooth: bool, how: str, device: torch.device) -> None:
    smooth = random_tensor(width, seed=1).abs() if is_smooth else None
    x, bias = random_tensor(rows, 40), random_tensor(width)
    args = (x, *make_int8(40, width), bias, "relu", None, None, 0.0, 0, torch.uint8, smooth, *HOW[how])
    check_quantized(device, linear_int8_summed, INT8, width, *args)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # numpy's word on what the interpreter asks of it
def test_nan_stays_in_its_row(device: torch.device) -> None:
    x = random_tensor(MIN_ROWS, 40)
    x[2, 7] = torch.nan
    is_spoilt = [row == 2 for row in range(MIN_ROWS)]
    found = run_on(device, linear_int8_summed, (MIN_ROWS, 20), torch.float32, x, *make_int8(40, 20))
    assert found.isnan().all(1).tolist() == found.isnan().any(1).tolist() == is_spoilt
    args = (x[:, :32].bfloat16(), *make_linear(1, 32, 20, torch.bfloat16)[1:], "relu")
    assert run_on(device, linear_act, (MIN_ROWS, 20), torch.bfloat16, *args).isnan().any(1).tolist() == is_spoilt


def test_few_rows_get_small_tiles_and_many_large_ones() -> None:
    assert choose_tile(1, 768) == choose_tile(64, 768) == TILES[-1]
    assert choose_tile(16384, 768) == choose_tile(4096, 3072) == TILES[0]
    assert choose_tile(8, 30522).rows == 16


@pytest.mark.slow
@every_capability
@pytest.mark.parametrize("kind", ["bf16", "fp16", "int8 of rows", "int8 of numbers", "int8 to rows"])
def test_compiles(kind: str, tile: GemmTile, capability: int) -> None:
    rows, depth, width = MIN_ROWS, 768, 256
    assert depth <= MAX_DEPTH
    if "int8" not in kind:
        dtype = torch.bfloat16 if kind == "bf16" else torch.float16
        residual = torch.zeros(rows, width, dtype=dtype)
        check_compiled(capability, linear_act, OP, *make_linear(rows, depth, width, dtype), "gelu", residual)
        return
    x = random_tensor(rows, depth, dtype=torch.bfloat16)
    given = x if kind == "int8 of numbers" else quantize_rows(x)
    dtype, scale = (torch.uint8, 0.1) if kind == "int8 to rows" else (torch.bfloat16, 0.0)
    bias, residual = random_tensor(width), torch.zeros(rows, width, dtype=torch.bfloat16)
    how = ("gelu", residual, None, 0.0, 0, dtype, None, scale, 7)
    check_compiled(capability, linear_int8_summed, INT8, given, *make_int8(depth, width), bias, *how)
