"""ONNX Runtime's sessions: made from a graph and its weights, with the options of the configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnxruntime
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What ONNX Runtime is told. `threads` 0: it takes a thread for each core."""

    threads: int = 0
    providers: Sequence[tuple[str, Mapping[str, str]]] = (("CPUExecutionProvider", {}),)
    is_spinning: bool = False
    """Whether threads that wait for one another turn in circles."""
    optimization: str = "all"


LEVELS = {
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
QUIET = 3
"""Of what ONNX Runtime logs: errors alone."""


def open_session(
    model: bytes, weights: Mapping[str, Tensor], options: SessionOptions
) -> onnxruntime.InferenceSession:
    """The weights stay where they are, and have to as long as the session is used."""
    chosen = onnxruntime.SessionOptions()
    chosen.log_severity_level = QUIET
    chosen.intra_op_num_threads = options.threads
    chosen.graph_optimization_level = LEVELS[options.optimization]
    chosen.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.is_spinning else "0")
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(tensor.numpy()) for tensor in weights.values()]
    chosen.add_external_initializers(list(weights), values)
    return onnxruntime.InferenceSession(model, chosen, providers=[(name, dict(each)) for name, each in options.providers])
