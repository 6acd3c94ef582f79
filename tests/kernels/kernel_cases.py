"""The one table of shapes, the one table of tolerances, and memory that shows what a kernel left out or overran."""

import shutil
from collections.abc import Callable, Mapping
from functools import cache

import pytest
import torch
from torch import Tensor

from runtime.backends.backend import Backend, Kernel
from runtime.backends.cpu.backend import cpu_backend
from runtime.backends.cpu.build import list_isas
from runtime.backends.plain.table import plain_backend
from tests.kernels.emulated import COMPILED, load_compiled
from tests.tolerances import Tolerance

SEQLENS: dict[str, list[int]] = {
    "one token": [1],
    "one odd": [7],
    "ones": [1] * 9,
    "mixed": [3, 1, 17, 64, 5],
    "runs": [4] * 5 + [9] * 3 + [4] * 2,
    "two long of a run": [700, 700],
    "at a block": [256],
    "over every block": [1027, 2],
    "1,000 sequences": [1 + index % 7 // 3 for index in range(1000)],
}
"""Kernels cut their work at 256 rows (norms), 512 (mixed types) and 1,024 tokens (runs)."""

DTYPES = [torch.float32, torch.bfloat16]

KERNEL_TOLERANCES: dict[torch.dtype, Tolerance] = {
    torch.float32: Tolerance(norm=2e-6, bound=5e-5),
    # Rounding to 8 bits is 2e-3 norm-wise; a kernel may round once more on its way than its reference.
    torch.bfloat16: Tolerance(norm=6e-3, bound=2e-1),
}

IMPLEMENTATIONS = ["torch", *COMPILED]
"""torch's kernels, and the compiled ones for every instruction set: AVX2 on AVX512 too, and AVX512 emulated."""

CONFIGURABLE = ["torch", *list_isas()[:1]]
"""Those that an engine takes here: torch's, and the best of the compiled ones."""

GUARD = 64

# Two threads on a busy machine wait for one another at every tiny op.
torch.set_num_threads(1)


@cache
def find_backend(implementation: str) -> Backend:
    if implementation == "torch":
        return plain_backend(torch.device("cpu"))
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    return cpu_backend(load_compiled(implementation))


def find_kernels(implementation: str) -> Mapping[object, Kernel]:
    return find_backend(implementation).kernels


def random_tensor(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def borders(seqlens: list[int]) -> Tensor:
    return torch.tensor([0, *seqlens]).cumsum(0).to(torch.int32)


def run_kernel(kernel: Callable[..., object], shape: tuple[int, ...], dtype: torch.dtype, *args: object) -> Tensor:
    """The kernel's result in the midst of NaN: what it leaves out shows, and what it writes beside fails."""
    buffer = torch.full((torch.Size(shape).numel() + 2 * GUARD,), torch.nan, dtype=dtype)
    out = buffer[GUARD:-GUARD].view(shape)
    with torch.inference_mode():
        kernel(*args, out=out)
    assert buffer[:GUARD].isnan().all(), "wrote before its place"
    assert buffer[-GUARD:].isnan().all(), "wrote behind its place"
    return out
