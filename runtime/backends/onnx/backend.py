"""ONNX Runtime as a target: what it computes, and a rewritten graph as a program for it."""

import torch
from torch.fx import GraphModule

from runtime.backends.backend import Backend
from runtime.backends.onnx.builder import make_model
from runtime.backends.onnx.inputs import ONNX_RUNTIME
from runtime.backends.onnx.lowering import Lowering
from runtime.backends.onnx.table import LOWERINGS
from runtime.capture import find_num_features
from runtime.compiled import OnnxProgram
from runtime.engine import EngineInfo
from runtime.memory.lifetimes import BatchShape


def onnx_backend(device: torch.device) -> Backend:
    """No op has a kernel of ours. INT8's sums are of 16 bits where a CPU has no VNNI, as with our own kernels."""
    return Backend(
        ONNX_RUNTIME,
        device,
        dict.fromkeys(LOWERINGS, refuse),
        precisions=("fp32", "int8"),
        int8_dtype=torch.float32,
        hands_on_rows=False,
        overflow_free=not torch.cpu._is_vnni_supported(),
    )


def refuse(*arguments: object, **options: object) -> None:
    raise AssertionError("What ONNX Runtime computes has no kernel of ours. This is a bug.")


def export_program(graph_module: GraphModule, largest: BatchShape, info: EngineInfo) -> OnnxProgram:
    """Raises UnusableConfig where an op has no counterpart."""
    builder = Lowering(graph_module, LOWERINGS).lower()
    model = make_model(builder).SerializeToString()
    return OnnxProgram(model, builder.weights, largest, info, find_num_features(graph_module))
