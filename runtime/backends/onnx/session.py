"""ONNX Runtime's session of one graph: made with the options of the configuration, run on memory that it is given."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from runtime.batch import Arrays
from runtime.config import EngineConfig, UnusableConfig

PROVIDER = "CPUExecutionProvider"
"""Where none is configured; behind others it takes what they lack."""
QUIET = 4
"""Of what ONNX Runtime logs: nothing, since it raises what it says."""
OPTIMIZATIONS = {"none": 0, "basic": 1, "extended": 2, "all": 99}
"""By ONNX Runtime's numbers."""


RECORD_NODES = "session.record_ep_graph_assignment_info"
"""The entry without which nobody knows which provider has taken a node."""
REMEDIES = (
    (
        "unsupported model ir version",
        "It is newer than ONNX Runtime {version}: pip install --upgrade onnxruntime, or export it again",
    ),
    (
        "is under development",
        "It is newer than ONNX Runtime {version}: pip install --upgrade onnxruntime, or export it for less",
    ),
    ("external data", "The file that holds its weights is to lie beside it, under the name that it was exported with"),
    ("", "It may be incomplete, or no ONNX file: copy or export it again"),
)
"""By what ONNX Runtime says of a file; the first that fits."""


class Session:
    """`weights` are kept as long as the session is: whether it copies them, ONNX Runtime's versions see differently.
    `model`: a graph, or a file.

    Raises UnusableConfig where ONNX Runtime is not installed, lacks a provider, or refuses the graph.
    """

    def __init__(self, model: bytes | Path, weights: Mapping[str, Tensor], config: EngineConfig) -> None:
        runtime = import_runtime()
        options, told = runtime.SessionOptions(), config.onnxruntime
        options.log_severity_level = QUIET
        options.intra_op_num_threads = config.threads
        options.graph_optimization_level = runtime.GraphOptimizationLevel(OPTIMIZATIONS[told.optimization])
        options.enable_cpu_mem_arena = told.arena
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(told.spinning)))
        options.add_session_config_entry(RECORD_NODES, "1")
        for key, value in told.session.items():
            options.add_session_config_entry(key, value)
        values = [runtime.OrtValue.ortvalue_from_numpy(tensor.numpy()) for tensor in weights.values()]
        if weights:
            options.add_external_initializers(list(weights), values)
        providers = find_providers(runtime.get_available_providers(), config)
        try:
            self.session = runtime.InferenceSession(model, options, providers=providers)
        except Exception as error:  # of classes that ONNX Runtime does not name
            raise UnusableConfig(explain(model, " ".join(str(error).split()), runtime.__version__)) from None
        check_providers([name for name, _ in providers], self.providers)
        self.weights = weights
        self.inputs = {each.name: each for each in self.session.get_inputs()}
        self.outputs = {each.name: each for each in self.session.get_outputs()}

    @property
    def providers(self) -> list[str]:
        """That it has come to use, the first one first."""
        return list(self.session.get_providers())

    def count_nodes(self) -> tuple[tuple[str, int], ...]:
        """See EngineInfo."""
        if not hasattr(self.session, "get_provider_graph_assignment_info"):  # older versions do not tell
            return ()
        counts = dict.fromkeys(self.providers, 0)
        for part in self.session.get_provider_graph_assignment_info():
            counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
        return tuple(counts.items())

    def compute(self, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        """These outputs, in memory that ONNX Runtime takes for them. Raises RuntimeError."""
        try:
            return dict(zip(outputs, self.session.run(outputs, inputs), strict=True))
        except Exception as error:  # of classes that ONNX Runtime does not name
            raise RuntimeError(str(error)) from None

    def run(self, inputs: Arrays, memory: Mapping[str, Tensor]) -> None:
        """Compute everything into `memory`, fp32 and contiguous, by the names of the outputs. One called `<name>.out`
        is the input of that name as well, changed in place. Raises RuntimeError."""
        binding = self.session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name, tensor in memory.items():
            if not tensor.numel():  # what an op gives that is there for what it writes
                continue
            place = ("cpu", 0, np.float32, list(tensor.shape), tensor.data_ptr())
            binding.bind_output(name, *place)
            if name.endswith(".out"):
                binding.bind_input(name.removesuffix(".out"), *place)
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:  # of classes that ONNX Runtime does not name
            raise RuntimeError(str(error)) from None


def explain(model: bytes | Path, reason: str, version: str) -> str:
    """Why a graph cannot be loaded, and what to do about a file."""
    if isinstance(model, bytes):
        return f"engine.kind onnxruntime: the graph cannot be loaded: {reason}"
    remedy = next(text for sign, text in REMEDIES if sign in reason.lower())
    return f"engine.onnxruntime.file: {model} cannot be loaded: {reason.rstrip('.')}. {remedy.format(version=version)}"


def check_providers(wanted: Sequence[str], used: Sequence[str]) -> None:
    """Raises UnusableConfig where one that the wheel has could not be loaded: something it needs is missing."""
    missing = [name for name in wanted if name not in used]
    if missing:
        raise UnusableConfig(
            f"engine.onnxruntime.providers: {missing[0]} cannot be loaded on this machine: its driver or one of its "
            "libraries is missing. Install them, or name another"
        )


def import_runtime() -> Any:
    """The package of whichever of its wheels is installed. Raises UnusableConfig."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError:
        raise UnusableConfig(
            "engine.kind onnxruntime needs ONNX Runtime, which is not installed: pip install onnxruntime, or "
            "onnxruntime-gpu for engine.device cuda. Or set engine.kind to planned"
        ) from None


def find_providers(available: Sequence[str], config: EngineConfig) -> list[tuple[str, dict[str, str]]]:
    """With their options, in order of preference. Raises UnusableConfig where one is not there."""
    wanted = [(each.name, dict(each.options)) for each in config.onnxruntime.providers]
    wanted = wanted or [(PROVIDER, {})]
    missing = [name for name, _ in wanted if name not in available]
    if missing:
        raise UnusableConfig(
            f"engine.onnxruntime.providers: {missing[0]} is not in the ONNX Runtime that is installed, which has "
            f"{', '.join(available)}. Install the wheel that has it (pip install onnxruntime-gpu for CUDA and "
            "TensorRT, onnxruntime-openvino for OpenVINO), or name another"
        )
    return wanted
