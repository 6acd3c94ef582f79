"""What tests of Triton's kernels have in common: types, tolerances, poisoned results, and launches to be compiled."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from runtime.backends.backend import Kernel
from runtime.backends.cuda.library import find_precisions
from tests.cuda.compiling import CAPABILITIES, compile_launch, recorded
from tests.kernels.kernel_cases import GUARD, KERNEL_TOLERANCES
from tests.tolerances import Tolerance, check_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CUDA_TOLERANCES: dict[torch.dtype, Tolerance] = KERNEL_TOLERANCES | {
    # Rounding to 11 bits is 3e-4 norm-wise.
    torch.float16: Tolerance(norm=8e-4, bound=3e-2),
}
"""Against an op's reference, which computes in fp32 and rounds once."""

every_capability = pytest.mark.parametrize("capability", CAPABILITIES)


def skip_without_fp8(precision: str, device: torch.device) -> None:
    """Devices from before Ada have no instructions for it."""
    if precision == "fp8" and device.type == "cuda" and "fp8" not in find_precisions(device):
        pytest.skip("this device has no instructions for fp8")


def run_on(
    device: torch.device,
    kernel: Kernel,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *args: object,
    **options: object,
) -> Tensor:
    """The kernel's result on the CPU, computed in the midst of NaN (-1 for integers): what it leaves out shows, and
    what it writes beside fails. Tensors among the arguments are brought to the device; what is changed there stays
    there, unless it is the CPU."""
    poison = torch.nan if dtype.is_floating_point else -1
    buffer = torch.full((torch.Size(shape).numel() + 2 * GUARD,), poison, dtype=dtype, device=device)
    before = buffer.view(torch.uint8).clone()
    out = buffer[GUARD:-GUARD].view(shape)
    with torch.inference_mode():
        kernel(*move(args, device), **move(options, device), out=out)
    guard_bytes = GUARD * dtype.itemsize
    after = buffer.view(torch.uint8)
    assert torch.equal(after[:guard_bytes], before[:guard_bytes]), "wrote before its place"
    assert torch.equal(after[-guard_bytes:], before[-guard_bytes:]), "wrote behind its place"
    return out.cpu()


def move(value: Any, device: torch.device) -> Any:
    """Tensors with their strides; the same one twice stays the same one."""
    moved: dict[int, Tensor] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            return moved.setdefault(id(value), value.to(device))
        if isinstance(value, Mapping):
            return {name: walk(item) for name, item in value.items()}
        return type(value)(walk(item) for item in value) if isinstance(value, list | tuple) else value

    return walk(value)


def check_kernel(device: torch.device, kernel: Kernel, op: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    """Against the op's reference, of which the result has shape and type."""
    expected = op(*args, **options)
    actual = run_on(device, kernel, tuple(expected.shape), expected.dtype, *args, **options)
    check_close(actual, expected, tolerance=CUDA_TOLERANCES[expected.dtype], what="result")
    return actual


def check_compiled(capability: int, kernel: Kernel, op: Callable[..., Tensor], *args: Any, **options: Any) -> None:
    """All that the launcher launches for these arguments compiles, without spills and into small devices."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        expected = op(*args, **options)
    out = torch.empty(expected.shape, dtype=expected.dtype)
    with recorded() as launches:
        kernel(*args, **options, out=out)
    assert launches, "nothing was launched"
    for launch in launches:
        compile_launch(launch, capability).check()
