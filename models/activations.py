"""HF's names of activations, and ours."""

from pathlib import Path

from models.keys import ModelDirectoryError

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


def read_activation(path: Path, name: object) -> str:
    if name not in ACTIVATIONS:
        raise ModelDirectoryError(f"{path}: unknown activation {name!r}; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[str(name)]


GATES = {"geglu": "gelu", "reglu": "relu"}
"""JinaBERT's names of feed-forward blocks, and ours of what gates them."""


def read_gate(path: Path, name: object) -> str:
    if name not in GATES:
        raise ModelDirectoryError(
            f"{path}: feed_forward_type {name!r} is not supported; supported are {', '.join(GATES)}"
        )
    return GATES[str(name)]
