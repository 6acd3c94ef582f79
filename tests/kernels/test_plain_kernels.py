"""torch's kernels where they are to suit another device than a CPU, which a stand-in for its limits tells of."""

import pytest
import torch
from torch import Tensor

from runtime.backends.plain import add_norm, linear_int8
from runtime.ops.linear_int8 import linear_int8 as reference
from tests.tolerances import check_close

INT_MM = torch._int_mm


def multiply_as_cuda_does(a: Tensor, b: Tensor) -> Tensor:
    """torch's checks of what cuBLASLt takes."""
    assert a.shape[0] > 16 and a.shape[1] % 8 == 0 and b.shape[1] % 8 == 0, f"{list(a.shape)} by {list(b.shape)}"
    return INT_MM(a, b)


@pytest.mark.parametrize(("num_rows", "in_features", "out_features"), [(1, 32, 16), (16, 30, 5), (40, 8, 9)])
def test_int8_layers_of_any_size_fit_torchs_gemm(
    num_rows: int, in_features: int, out_features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "_int_mm", multiply_as_cuda_does)
    generator = torch.Generator().manual_seed(0)
    x, bias = torch.randn(num_rows, in_features, generator=generator), torch.randn(out_features, generator=generator)
    weight = torch.randint(-127, 128, (out_features, in_features), dtype=torch.int8, generator=generator)
    args = (x, weight, torch.full((out_features,), 0.01), bias, "gelu")
    out = torch.full((num_rows, out_features), torch.nan)
    linear_int8.linear_int8(*args, out=out)
    check_close(out, reference(*args))


@pytest.mark.parametrize(("device", "num_blocks"), [("cpu", 4), ("meta", 1)])
def test_norms_are_in_blocks_on_a_cpu_alone(device: str, num_blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, normalize = list[int](), add_norm.normalize
    monkeypatch.setattr(add_norm, "normalize", lambda x, *rest: seen.append(len(x)) or normalize(x, *rest))
    x, weight = torch.zeros(1000, 8, device=device), torch.ones(8, device=device)
    add_norm.add_norm(x, x, weight, weight, 1e-5, out=torch.empty_like(x))
    add_norm.layer_norm(x, (8,), weight, weight, out=torch.empty_like(x))
    assert len(seen) == 2 * num_blocks and sum(seen) == 2000
