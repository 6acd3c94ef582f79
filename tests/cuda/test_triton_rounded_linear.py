"""Linear layers in fp8 and with weights of 8 or 4 bits by Triton: against the references, alone as in a batch, and
compiled."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from runtime.backends.backend import Kernel
from runtime.backends.cuda import gemm, linear_fp8, linear_int8, linear_weight_only
from runtime.backends.cuda.gemm import GROUPED_TILES, SLICED_TILES, TILES, GemmTile, Slices, cut_depth
from runtime.backends.cuda.ops import LINEAR_INT8_SUMMED
from runtime.ops import linear_fp8 as linear_fp8_op
from runtime.ops import linear_weight_only as linear_weight_only_op
from runtime.ops.quantized_rows import quantize_rows
from tests.cuda.compiling import CAPABILITIES, FP8_CAPABILITIES
from tests.cuda.cuda_cases import CUDA_TOLERANCES, check_compiled, check_kernel, run_on, skip_without_fp8
from tests.kernels.kernel_cases import random_tensor
from tests.quantization.rounded_layers import KINDS, round_layer
from tests.tolerances import check_close

KERNELS: dict[str, tuple[Kernel, Callable[..., Tensor]]] = {
    "fp8": (linear_fp8.linear_fp8, linear_fp8_op.OP),
    "int8_weights": (linear_weight_only.linear_weight_only, linear_weight_only_op.OP),
    "int4_weights": (linear_weight_only.linear_weight_only, linear_weight_only_op.OP),
}
EVERY_TILE = list(dict.fromkeys([*TILES, *SLICED_TILES, *GROUPED_TILES]))
OTHERS = [pytest.param(tile, marks=pytest.mark.slow) for tile in EVERY_TILE if tile != TILES[-1]]


@pytest.fixture(params=[TILES[-1], *OTHERS], ids=lambda tile: f"{tile.rows}x{tile.columns}")
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[GemmTile]:
    """Whatever is multiplied."""
    monkeypatch.setattr(gemm, "choose_tile", lambda *_: request.param)
    yield request.param


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that four programs keep busy, and slices of 128 numbers."""
    monkeypatch.setattr(gemm, "MANY_PROGRAMS", 4)
    for module in (linear_fp8, linear_int8, linear_weight_only):
        monkeypatch.setattr(module, "LEAST_SLICE", 128)


def make_inputs(kind: str, rows: int, depth: int, width: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Any, ...]:
    """All arguments of the op."""
    weight = random_tensor(width, depth, seed=1) / depth**0.5
    x, residual = random_tensor(rows, depth, dtype=dtype), random_tensor(rows, width, dtype=dtype)
    return (x, *round_layer(kind, weight), random_tensor(width), "gelu", residual)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize(
    ("rows", "depth", "width"),
    [
        (3, 70, 40),
        pytest.param(20, 192, 70, marks=pytest.mark.slow),
        pytest.param(130, 256, 33, marks=pytest.mark.slow),
    ],
)
def test_every_tile(
    rows: int, depth: int, width: int, dtype: torch.dtype, kind: str, tile: GemmTile, device: torch.device
) -> None:
    """Groups of 32 that are filled up, of 64 and of 128."""
    skip_without_fp8(kind, device)
    check_kernel(device, *KERNELS[kind], *make_inputs(kind, rows, depth, width, dtype))


IN_BATCHES = [
    pytest.param(kind, tile, id=f"{kind}-{tile.rows}x{tile.columns}", marks=[] if place == 0 else [pytest.mark.slow])
    for kind in KINDS
    for place, tile in enumerate(GROUPED_TILES if kind == "int4_weights" else SLICED_TILES)
]


@pytest.fixture
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, one step of a tile: numpy sums in another order for each shape, which in fp64 rounds nothing.
    Steps and slices are added in fp32."""
    multiply = np.matmul
    monkeypatch.setattr(np, "matmul", lambda a, b, dtype: multiply(a, b, dtype=np.float64).astype(dtype))


@pytest.mark.usefixtures("exact_products")
@pytest.mark.parametrize(("kind", "tile"), IN_BATCHES)
def test_alone_as_in_a_batch(kind: str, tile: GemmTile, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows in the smallest tile by programs for each slice, many in a larger one by programs for all of them: the
    same to the last bit of fp32."""
    skip_without_fp8(kind, device)
    monkeypatch.setattr(gemm, "MANY_PROGRAMS", 2)  # the batch has two tiles at least, of whatever size
    monkeypatch.setattr(gemm, "cut_depth", lambda *_: Slices(3, 256))  # of two steps or groups each, so that it matters
    monkeypatch.setattr(gemm, "choose_tile", lambda num_rows, *_: tile if num_rows > 3 else TILES[-1])
    kernel, op = KERNELS[kind]
    x, *others, residual = make_inputs(kind, 130, 640, 40)
    x *= (random_tensor(130, 640, seed=2) * 3).exp()  # of many sizes, so that sums are rounded
    together = run_on(device, kernel, (130, 40), torch.float32, x, *others, residual)
    check_close(together, op(x, *others, residual).float(), tolerance=CUDA_TOLERANCES[torch.bfloat16])
    alone = run_on(device, kernel, (3, 40), torch.float32, x[:3], *others, residual[:3])
    assert torch.equal(alone, together[:3])


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8], ids=str)
def test_int8_in_slices(dtype: torch.dtype, device: torch.device) -> None:
    weight = (random_tensor(40, 300, seed=1) * 40).clamp(-127, 127).to(torch.int8)
    rows, scale = quantize_rows(random_tensor(2, 300)), torch.full((40,), 1e-3)
    after = (random_tensor(40), "gelu", None, None, 0.0, 0, dtype, None, 0.02 if dtype == torch.uint8 else 0.0, 90)
    args = (rows, functional.pad(weight, (0, 4)), weight.sum(1, dtype=torch.int32), scale, *after)
    expected = LINEAR_INT8_SUMMED.target(*args)
    found = run_on(device, linear_int8.linear_int8_summed, tuple(expected.shape), dtype, *args)
    assert (found.float() - expected.float()).abs().max() <= (1 if dtype == torch.uint8 else 1e-2)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # numpy's word on what the interpreter asks of it
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_is_no_number_stays_in_its_row(kind: str, number: float, device: torch.device) -> None:
    skip_without_fp8(kind, device)
    x, *others = make_inputs(kind, 3, 70, 40)
    x[1, 7] = number
    found = run_on(device, KERNELS[kind][0], (3, 40), torch.bfloat16, x, *others[:-3])
    assert (~found.isfinite()).any(1).tolist() == [False, True, False]
    assert kind != "fp8" or found[1].isnan().all()


def test_rows_of_zeros_and_tiny_ones(device: torch.device) -> None:
    skip_without_fp8("fp8", device)
    x, *others = make_inputs("fp8", 3, 70, 40)
    x[0], x[1] = 0, 1e-38
    check_kernel(device, *KERNELS["fp8"], x, *others)


def test_slices_follow_from_the_weights_shape() -> None:
    """As many as keep a device busy, none for weights that are wide or shallow, and multiples of a group."""
    assert cut_depth(4096, 4096, 512) == Slices(2, 2048) and cut_depth(768, 768, 512) == Slices(1, 768)
    assert cut_depth(576, 1536, 512) == Slices(3, 512) and cut_depth(49_152, 4096, 512) == Slices(1, 4096)
    assert cut_depth(64, 1100, 512) == Slices(2, 640)


@pytest.mark.parametrize(("kind", "capability"), [("fp8", 90), ("int4_weights", 80)])
def test_compiles_for_few_rows(kind: str, capability: int) -> None:
    """In slices, and what joins them."""
    check_compiled(capability, *KERNELS[kind], *make_inputs(kind, 8, 4096, 64))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", range(len(TILES)))
@pytest.mark.parametrize(("depth", "width"), [(768, 3072), (4096, 1024), (192, 2048)])
def test_compiles(kind: str, place: int, depth: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every tile that a layer may get, with slices and without, and groups of each size."""
    monkeypatch.setattr(gemm, "choose_tile", lambda rows, columns, tiles: tiles[min(place, len(tiles) - 1)])
    inputs = make_inputs(kind, 4096, depth, width)
    for capability in FP8_CAPABILITIES if kind == "fp8" else CAPABILITIES:
        check_compiled(capability, *KERNELS[kind], *inputs)
