"""A CUDA device as a target: Triton's kernels where it has instructions for them, torch's in all other places."""

import torch

from runtime.backends.backend import Backend
from runtime.backends.cuda.library import TRITON, has_kernels, load_kernels
from runtime.backends.cuda.sum_weights import sum_weights
from runtime.backends.plain.table import plain_backend
from runtime.config import Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "int8", "int8_weights", "int4_weights")
PASSES = (("sum_weights", sum_weights),)


def cuda_backend(device: torch.device) -> Backend:
    """torch's kernels, and Triton's in their place. Raises UnusableConfig."""
    if not has_kernels(device):
        return plain_backend(device)
    precisions = find_precisions(device)
    return Backend(TRITON, device, load_kernels(), PASSES, precisions=precisions, kv_order="rows")


def find_precisions(device: torch.device) -> tuple[Precision, ...]:
    """What Triton's kernels compute in there: e4m3 where there are matrix instructions for it, from Ada on."""
    has_fp8 = torch.cuda.get_device_capability(device) >= (8, 9)
    return (*PRECISIONS, "fp8") if has_fp8 else PRECISIONS
