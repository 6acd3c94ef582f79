"""Weights as the ops take them in precisions that round weights."""

from torch import Tensor

from runtime.config import Precision
from runtime.passes.quantize_weights import round_weight
from runtime.quantization.e4m3 import quantize_channels

KINDS: tuple[Precision, ...] = ("fp8", "int8_weights", "int4_weights")


def round_layer(kind: str, weight: Tensor) -> tuple[Tensor | None, ...]:
    """The op's arguments between rows and bias."""
    if kind == "fp8":
        rounded = quantize_channels(weight)
        return rounded.values, rounded.scale
    parts = round_weight(weight, 8 if kind == "int8_weights" else 4)
    return parts["weight"], parts["scale"], parts.get("zero")
