"""What devices run, loaded when one is used: the kernels, and what draws tokens."""

import importlib
import importlib.util
from collections.abc import Mapping

import torch

from runtime.backends.backend import Kernel
from runtime.backends.plain.table import TORCH_KERNELS
from runtime.config import Precision, UnusableConfig
from runtime.engines.token_counts import Penalise
from runtime.sampling_filters import DrawTokens, draw_tokens

TRITON = "triton"
"""The kernels' name."""
LEAST_CAPABILITY = (8, 0)
"""From Ampere on there are matrix instructions for every type that the kernels compute in, but e4m3."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "int8", "int8_weights", "int4_weights")


def has_kernels(device: torch.device) -> bool:
    """Whether a CUDA device has what they are compiled to."""
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


def find_precisions(device: torch.device) -> tuple[Precision, ...]:
    """What they compute in there: e4m3 where there are matrix instructions for it, from Ada on."""
    if not has_kernels(device):
        return ()
    return (*PRECISIONS, "fp8") if torch.cuda.get_device_capability(device) >= (8, 9) else PRECISIONS


def has_triton(device: torch.device) -> bool:
    """Whether logits that lie there are Triton's business."""
    return device.type == "cuda" and has_kernels(device) and importlib.util.find_spec("triton") is not None


def find_penalise(device: torch.device) -> Penalise | None:
    """What penalises logits there by counts that are kept there; None: nothing does."""
    if not has_triton(device):
        return None
    penalise: Penalise = importlib.import_module("runtime.backends.cuda.penalties").penalise
    return penalise


def find_draw(device: torch.device) -> DrawTokens:
    """What draws tokens from logits that lie there."""
    if not has_triton(device):
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
