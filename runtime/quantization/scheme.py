"""What calibration has found out about a model, and the file that keeps it: vectors and choices, no weights."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from runtime.config import UnusableConfig
from runtime.lazy_module import LazyWeight
from runtime.quantization.accuracy import Accuracy

FORMAT = "padless-int8-1"
SCALARS = ("fingerprint", "activations", "num_texts", "num_tokens")
"""Fields of Quantization that the file's metadata holds as they are."""
REMEDY = "Make it anew: padless quantize --config FILE --data TEXTS. Or leave engine.quantization out"
ActivationMode = Literal["dynamic", "static"]


@dataclass(frozen=True, slots=True, eq=False)
class LinearScheme:
    """How one linear is quantised; what is None is not done."""

    smooth: Tensor | None = None
    """fp32 [in_features]: inputs are divided by it, and the weight's columns multiplied, before either is rounded
    (Xiao et al. 2023)."""
    static_range: tuple[float, float] | None = None
    """Least and largest input, divided by `smooth`, where the range is not taken from each row."""
    is_float: bool = False
    """Left in fp32."""


@dataclass(frozen=True, slots=True, eq=False)
class Quantization:
    """Everything about one model, by the name of the weight in its captured graph after `fuse_qkv`."""

    linears: Mapping[str, LinearScheme]
    fingerprint: str
    """Of the weights: see `fingerprint_weights`."""
    activations: ActivationMode = "dynamic"
    num_texts: int = 0
    num_tokens: int = 0
    """Calibrated on."""
    accuracy: Accuracy = field(default_factory=Accuracy)
    """On other texts."""


def fingerprint_weights(weights: Mapping[str, LazyWeight]) -> str:
    """sha256 over names, shapes and values of the fp32 weights: 50 ms for 10 million of them."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].read().detach().float().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(np.ascontiguousarray(value.numpy()).data)
    return digest.hexdigest()


def save_quantization(path: Path, quantization: Quantization) -> None:
    """Write a safetensors file: `smooth` by its linear's name, all else as JSON in the metadata. Raises OSError."""
    document = {key: getattr(quantization, key) for key in SCALARS}
    document |= {"accuracy": asdict(quantization.accuracy), "linears": {}}
    tensors = {}
    for name, scheme in quantization.linears.items():
        document["linears"][name] = {"static_range": scheme.static_range, "is_float": scheme.is_float}
        if scheme.smooth is not None:
            tensors[name] = scheme.smooth.detach().float().cpu().contiguous()
    metadata = {"format": FORMAT, "padless": json.dumps(document)}
    path.write_bytes(save(tensors, metadata=metadata))


def load_quantization(path: Path) -> Quantization:
    """Read what `save_quantization` wrote. Raises UnusableConfig; see also `check_model`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except (OSError, SafetensorError) as error:
        raise UnusableConfig(f"engine.quantization {path}: cannot be read: {error}. {REMEDY}") from None
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "none of ours")
        raise UnusableConfig(f"engine.quantization {path}: its format is {found}, and not {FORMAT}. {REMEDY}")
    document = json.loads(metadata["padless"])
    linears = {
        name: LinearScheme(
            smooth=tensors.get(name),
            static_range=None if choices["static_range"] is None else tuple(choices["static_range"]),
            is_float=choices["is_float"],
        )
        for name, choices in document["linears"].items()
    }
    return Quantization(linears, **{key: document[key] for key in SCALARS}, accuracy=Accuracy(**document["accuracy"]))


def check_model(quantization: Quantization, weights: Mapping[str, LazyWeight]) -> None:
    """Whether the file was made for these weights, those of `list_weights`. Raises UnusableConfig."""
    if fingerprint_weights(weights) != quantization.fingerprint:
        raise UnusableConfig(f"engine.quantization: the file was made for another model's weights. {REMEDY}")
