"""ONNX Runtime as a target: what it computes, and a rewritten graph as a program for it."""

from dataclasses import replace

import torch
from torch.fx import GraphModule

from runtime.backends.backend import Backend
from runtime.backends.onnx.builder import make_model
from runtime.backends.onnx.inputs import MAX_PAIRS, ONNX_RUNTIME
from runtime.backends.onnx.lowering import Lowering
from runtime.backends.onnx.table import LOWERINGS
from runtime.capture import find_num_features
from runtime.compiled import OnnxProgram
from runtime.engine import EngineInfo
from runtime.memory.lifetimes import BatchShape
from runtime.ops import paged_attention, varlen_attention

ATTENTION = (varlen_attention.OP, paged_attention.OP)
NUM_COPIES = 3


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


def portable_backend() -> Backend:
    """For graphs that other machines compute: any CPU."""
    return replace(onnx_backend(torch.device("cpu")), overflow_free=True)


def refuse(*arguments: object, **options: object) -> None:
    raise AssertionError("What ONNX Runtime computes has no kernel of ours. This is a bug.")


def export_program(graph_module: GraphModule, largest: BatchShape, info: EngineInfo) -> OnnxProgram:
    """Raises UnusableConfig where an op has no counterpart."""
    builder = Lowering(graph_module, LOWERINGS).lower()
    model = make_model(builder).SerializeToString()
    info = replace(
        info,
        weight_bytes=sum(tensor.nbytes for tensor in builder.weights.values()),
        activation_bytes=info.activation_bytes + count_score_bytes(graph_module, largest),
    )
    return OnnxProgram(model, builder.weights, largest, info, find_num_features(graph_module))


def count_score_bytes(graph_module: GraphModule, largest: BatchShape) -> int:
    """Of a group's scores, which no plan of ours knows: as they are computed, masked, and as weights."""
    heads = [node.meta["val"].shape[1] for node in graph_module.graph.nodes if node.target in ATTENTION]
    pairs = max(MAX_PAIRS, min(largest.num_tokens, largest.max_seqlen) * largest.max_seqlen)
    return NUM_COPIES * torch.float32.itemsize * pairs * max((int(num_heads) for num_heads in heads), default=0)
