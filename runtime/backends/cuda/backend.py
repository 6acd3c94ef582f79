"""A CUDA device as a target: Triton's kernels where it has instructions for them, torch's in all other places."""

import torch

from runtime.backends.backend import Backend
from runtime.backends.cuda.library import TRITON, find_precisions, has_kernels, load_kernels
from runtime.backends.cuda.sum_weights import sum_weights
from runtime.backends.plain.table import plain_backend

PASSES = (("sum_weights", sum_weights),)


def cuda_backend(device: torch.device) -> Backend:
    """torch's kernels, and Triton's in their place. Raises UnusableConfig."""
    if not has_kernels(device):
        return plain_backend(device)
    return Backend(TRITON, device, load_kernels(), PASSES, precisions=find_precisions(device), kv_order="rows")
