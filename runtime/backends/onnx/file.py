"""An ONNX file that somebody else has made: what it reads and gives, found out by names, shapes and types."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from runtime.backends.onnx.session import Session
from runtime.config import EngineConfig, FileInput, OnnxRuntimeConfig, UnusableConfig

INPUT_TYPES: dict[str, npt.DTypeLike] = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(float)": np.float32,
}
"""Of token ids, masks and positions, as ONNX Runtime names them."""
OUTPUT_TYPES = ("tensor(float)", "tensor(float16)", "tensor(double)")
NEEDED: tuple[FileInput, ...] = ("input_ids", "attention_mask")
"""Without a mask padding would be seen."""
DECODERS = ("past_key_values", "decoder_", "encoder_hidden_states")
"""What only inputs of decoders begin with."""


class Input(NamedTuple):
    """`name`: the file's own."""

    name: str
    dtype: np.dtype[Any]


class OnnxFile:
    """`inputs`: by our names, `[num_seqs, seqlen]` each. Raises UnusableConfig where it cannot be opened, or wants what
    nobody can give it."""

    def __init__(self, path: Path, config: EngineConfig) -> None:
        self.path = path
        self.told = config.onnxruntime
        self.session = Session(path, {}, config)
        self.inputs = find_inputs(path, self.session.inputs, self.told)
        if self.told.output is not None and self.told.output not in self.session.outputs:
            raise UnusableConfig(
                f"engine.onnxruntime.output: {path} has no output {self.told.output}. It has {self.list_outputs()}"
            )

    def find_output(self, names: Sequence[str], num_dims: int) -> str | None:
        """What is configured, one of these names, or the only output with so many dimensions, which all of them have;
        None where there is none."""
        shapes = {name: each.shape for name, each in self.session.outputs.items() if each.type in OUTPUT_TYPES}
        fitting = [name for name, shape in shapes.items() if len(shape or ()) == num_dims]
        known = [name for name in (self.told.output, *names) if name in fitting]
        return known[0] if known else fitting[0] if len(fitting) == 1 else None

    def has_output(self, name: str) -> bool:
        return name in self.session.outputs

    def find_width(self, name: str) -> int | None:
        """The last dimension of an output; None where the file leaves it open."""
        shape = self.session.outputs[name].shape
        return shape[-1] if shape and isinstance(shape[-1], int) else None

    def list_outputs(self) -> str:
        """For messages."""
        return ", ".join(f"{name} {each.shape}" for name, each in self.session.outputs.items())


def find_inputs(path: Path, there: Mapping[str, Any], told: OnnxRuntimeConfig) -> dict[str, Input]:
    """`there`: the file's. Raises UnusableConfig."""
    names = {ours: told.inputs.get(ours, ours) for ours in get_args(FileInput)}
    found = {ours: there[name] for ours, name in names.items() if name in there}
    for ours, name in told.inputs.items():
        if name not in there:
            raise UnusableConfig(
                f"engine.onnxruntime.inputs: {ours}: {path} has no input {name}. It reads {', '.join(there)}"
            )
    unknown = [name for name in there if name not in names.values()]
    if any(name.startswith(DECODERS) for name in unknown):
        raise UnusableConfig(
            f"engine.onnxruntime.file: {path} is a decoder's, which reads {unknown[0]}, and only encoders are served "
            "from files. Set engine.kind to planned, and use a directory with weights"
        )
    missing = [ours for ours in NEEDED if ours not in found]
    if unknown or missing:
        what = f"reads {', '.join(unknown)}, which nothing is known of" if unknown else f"reads no {missing[0]}"
        raise UnusableConfig(
            f"engine.onnxruntime.inputs: {path} {what}. Map {', '.join(names)} to its inputs by name: inputs: "
            f"{{{(missing or list(names))[0]}: NAME}}; what is none of these cannot be given"
        )
    for ours, each in found.items():
        check_input(path, ours, each)
    return {ours: Input(each.name, np.dtype(INPUT_TYPES[each.type])) for ours, each in found.items()}


def check_input(path: Path, ours: str, given: Any) -> None:
    """Raises UnusableConfig where it takes no batches of any size, or other numbers."""
    if given.type not in INPUT_TYPES:
        raise UnusableConfig(
            f"engine.onnxruntime.inputs: {ours}: {path} takes {given.name} as {given.type}, which is none of "
            f"{', '.join(INPUT_TYPES)}. Map it to another input"
        )
    if len(given.shape) != 2 or any(isinstance(size, int) for size in given.shape):
        raise UnusableConfig(
            f"engine.onnxruntime.file: {path} takes {given.name} as {given.shape}, and batches have any number of "
            "sequences of any length. Export it with both of these dimensions dynamic"
        )
