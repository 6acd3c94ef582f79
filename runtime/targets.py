"""Which backend a configuration asks for, and whether that computes in its precision."""

import torch

from runtime.backends.backend import Backend
from runtime.backends.cpu.backend import cpu_backend
from runtime.backends.cuda.backend import cuda_backend
from runtime.backends.onnx.backend import onnx_backend
from runtime.backends.plain.table import plain_backend
from runtime.config import EngineConfig, UnusableConfig, explain_missing
from runtime.engine import Progress
from runtime.open import find_library


def find_backend(config: EngineConfig, progress: Progress) -> Backend:
    """Raises UnusableConfig, also where it does not compute in the precision that is asked for."""
    backend = choose_backend(config, progress)
    precision = config.named_precision
    if precision is not None and precision not in backend.precisions:
        raise UnusableConfig(
            f"{explain_missing(precision)}. Set precision to one of {', '.join(backend.precisions)}, or to auto"
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
