"""A CUDA device as a target: Triton's kernels where it has instructions for them, torch's in all other places."""

import importlib
from collections.abc import Mapping

import torch

from runtime.backends.backend import Backend, Kernel
from runtime.backends.plain.table import TORCH_KERNELS, plain_backend
from runtime.config import UnusableConfig

TRITON = "triton"
"""The kernels' name."""
LEAST_CAPABILITY = (8, 0)
"""From Ampere on there are matrix instructions for every type that the kernels compute in."""


def cuda_backend(device: torch.device) -> Backend:
    """torch's kernels, and Triton's in their place. Raises UnusableConfig."""
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return plain_backend(device)
    return Backend(TRITON, device, load_kernels(), kv_order="rows")


def load_kernels() -> Mapping[object, Kernel]:
    """Of devices from LEAST_CAPABILITY on. Raises UnusableConfig where Triton is not installed."""
    try:
        table = importlib.import_module("runtime.backends.cuda.table")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise UnusableConfig(
            "engine.device cuda: Triton is not installed, which torch's wheels for CUDA bring along. Install "
            "padless[gpu], or set device to cpu"
        ) from None
    kernels: Mapping[object, Kernel] = table.TRITON_KERNELS
    return TORCH_KERNELS | dict(kernels)
