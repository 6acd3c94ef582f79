"""The CPU as a target: the compiled kernels, and weights packed for them."""

import torch

from runtime.backends.backend import Backend
from runtime.backends.cpu.build import OVERFLOW_FREE
from runtime.backends.cpu.library import CpuLibrary
from runtime.backends.cpu.pack_weights import pack_weights
from runtime.backends.plain.table import TORCH_KERNELS

PASSES = (("pack_weights", pack_weights),)


def cpu_backend(library: CpuLibrary) -> Backend:
    """torch's kernels, and the compiled ones in their place."""
    return Backend(
        library.isa,
        torch.device("cpu"),
        TORCH_KERNELS | library.kernels,
        PASSES,
        overflow_free=library.isa in OVERFLOW_FREE,
        round_channels=library.round_channels,
    )
