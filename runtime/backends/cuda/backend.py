"""A CUDA device as a target: Triton's kernels where it has instructions for them, torch's in all other places."""

import importlib
import importlib.util
from collections.abc import Mapping

import torch

from runtime.backends.backend import Backend, Kernel
from runtime.backends.cuda.sum_weights import sum_weights
from runtime.backends.plain.table import TORCH_KERNELS, plain_backend
from runtime.config import UnusableConfig
from runtime.sampling_filters import DrawTokens, draw_tokens

TRITON = "triton"
"""The kernels' name."""
PASSES = (("sum_weights", sum_weights),)
LEAST_CAPABILITY = (8, 0)
"""From Ampere on there are matrix instructions for every type that the kernels compute in."""


def cuda_backend(device: torch.device) -> Backend:
    """torch's kernels, and Triton's in their place. Raises UnusableConfig."""
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return plain_backend(device)
    return Backend(TRITON, device, load_kernels(), PASSES, kv_order="rows")


def find_draw(device: torch.device) -> DrawTokens:
    """What draws tokens from logits that lie there."""
    has_kernels = device.type == "cuda" and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
    if not has_kernels or importlib.util.find_spec("triton") is None:
        return draw_tokens
    draw: DrawTokens = importlib.import_module("runtime.backends.cuda.sampling").draw_tokens
    return draw


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
