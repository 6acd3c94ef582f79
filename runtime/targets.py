"""Which backend a configuration asks for, and whether that computes in its precision."""

import torch

from runtime.backends.backend import Backend
from runtime.backends.cpu.backend import cpu_backend
from runtime.backends.cuda.backend import cuda_backend
from runtime.backends.onnx.backend import onnx_backend
from runtime.backends.plain.table import plain_backend
from runtime.config import CUDA_PRECISIONS, EngineConfig, UnusableConfig
from runtime.engine import Progress
from runtime.open import find_library


def check_precision(config: EngineConfig) -> None:
    """Raises UnusableConfig."""
    if config.precision in CUDA_PRECISIONS and config.device == "cpu":
        raise UnusableConfig(
            f"engine.precision {config.precision} has no kernels with engine.device cpu. Set precision to bf16, fp32 "
            "or auto, or device to cuda"
        )
    if config.kind == "onnxruntime" and config.precision == "bf16":
        raise UnusableConfig("engine.kind onnxruntime has no operators for bf16. Set precision to fp32, int8 or auto")


def find_backend(config: EngineConfig, progress: Progress) -> Backend:
    """Raises UnusableConfig, also where it does not compute in the precision that is asked for."""
    backend = choose_backend(config, progress)
    if config.named_precision not in (None, *backend.precisions):
        raise UnusableConfig(
            f"engine.precision {config.precision} has no instructions or kernels on this device: fp8 wants a GPU of "
            "compute capability 8.9 or newer, int8_weights and int4_weights one of 8.0 or newer. Set precision to "
            f"one of {', '.join(backend.precisions)}, or to auto"
        )
    return backend


def choose_backend(config: EngineConfig, progress: Progress) -> Backend:
    """Raises UnusableConfig."""
    device = torch.device(config.device)
    if config.kind == "onnxruntime":
        return onnx_backend(device)
    if config.kind == "cuda_graphs" and device.type != "cuda":
        raise UnusableConfig("engine.kind cuda_graphs needs engine.device cuda. Set device to cuda, or kind to planned")
    if device.type == "cuda":
        return cuda_backend(device)
    library = find_library(config, device, progress)
    return plain_backend(device) if library is None else cpu_backend(library)
