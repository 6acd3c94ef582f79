"""How far numbers may be from those they are compared with: one table per type, one check for every test.

`bound` limits |actual - expected| / scale of each element, and `norm` the root mean square of that over all elements,
where scale is the root mean square of what is expected: `norm` is |actual - expected| / |expected| of whole arrays. An
element that is small by chance is held to the size of its neighbours, not to its own, which no arithmetic could meet.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, slots=True)
class Tolerance:
    norm: float
    bound: float

    def times(self, factor: float) -> "Tolerance":
        return Tolerance(self.norm * factor, self.bound * factor)


TOLERANCES: dict[torch.dtype, Tolerance] = {
    torch.float32: Tolerance(norm=1e-5, bound=5e-5),
    torch.bfloat16: Tolerance(norm=2e-2, bound=1.5e-1),
    torch.float16: Tolerance(norm=3e-3, bound=2e-2),
}
"""Over whole models, against another implementation in fp32: the same numbers summed in another order.

Norms are what the project promises; worst elements measured on tiny models of all families are 5e-6 in fp32 and 6e-2
in bf16.
"""

SAME_ENGINE = Tolerance(norm=1e-6, bound=1e-5)
"""FP32, the same engine on other batch-mates: only the GEMM's blocking may differ. Measured: 7e-7 and 6e-6."""

ENCODER_TOLERANCES: dict[str, Tolerance] = {
    "fp32": TOLERANCES[torch.float32],
    "bf16": TOLERANCES[torch.bfloat16],
    "int8": Tolerance(norm=6e-2, bound=2.5e-1),
    "fp8": Tolerance(norm=4e-2, bound=1.5e-1),
    "int8_weights": Tolerance(norm=2e-2, bound=1.5e-1),
    "int4_weights": Tolerance(norm=1.2e-1, bound=5e-1),
}
"""Engines by precision, against the module in fp32; int8 without a calibration. Measured on tiny models of all
families, by AVX2's kernels with their bounded weights: norms up to 3.7e-2 and worst elements 1.7e-1 in int8. Rows are
32 wide there, over which errors hardly average out. Of the last three on BERT alone: norms 1.8e-2, 4e-3 and 5.9e-2.
"""

SPARSE_TOLERANCES: dict[str, Tolerance] = {
    "fp32": TOLERANCES[torch.float32],
    "bf16": TOLERANCES[torch.bfloat16],
    "int8": Tolerance(norm=9e-2, bound=4e-1),
}
"""The same of the largest logits of words: the largest of several gathers what rounding has raised."""

BORDER_TOLERANCES: dict[str, Tolerance] = {
    "fp32": TOLERANCES[torch.float32],
    "bf16": TOLERANCES[torch.bfloat16],
    "int8": Tolerance(norm=1.2e-1, bound=4e-1),
}
"""The same of answers' borders and of tokens' labels, a few logits a token: nothing averages the errors of a row of 32.
Measured by AVX2's kernels: 8.6e-2 and 2.4e-1 in int8; with gated feed-forward blocks 9.8e-2 and 7.0e-1."""

DECODER_TOLERANCES: dict[str, Tolerance] = {
    "fp32": TOLERANCES[torch.float32],
    "bf16": Tolerance(norm=3e-2, bound=3.5e-1),
    "int8": Tolerance(norm=1e-1, bound=1.0),
    "fp8": Tolerance(norm=4e-2, bound=2e-1),
    "int8_weights": Tolerance(norm=2e-2, bound=1.5e-1),
    "int4_weights": Tolerance(norm=8e-2, bound=3e-1),
}
"""The same of logits after every token, over a cache of bf16 except in fp32. Measured: 2.4e-2 and 3.1e-1 in bf16,
7.6e-2 and 8.1e-1 in int8. Of the last three on Llama alone: norms 1.8e-2, 5e-3 and 4e-2."""

EXPERTS_TOLERANCES: dict[str, Tolerance] = {
    "fp32": TOLERANCES[torch.float32],
    "bf16": Tolerance(norm=8e-2, bound=2.0),
    "int8": Tolerance(norm=1.8e-1, bound=2.5),
}
"""The same of models with experts: where two are nearly even for a token, rounding takes the other one, and its row is
another. Where all experts are taken, so that none can be another, they are as other decoders: 1.5e-2 and 1.9e-1
in bf16, 5e-2 and 3.6e-1 in int8. Measured on tiny models, of which Mixtral errs most, with two experts of five: 6.4e-2
and 1.5 in bf16, 1.44e-1 and 1.9 in int8 by AVX2's kernels with their bounded weights."""

LAST_TOKEN_TOLERANCES = DECODER_TOLERANCES | {"int8": Tolerance(norm=1.5e-1, bound=1.0)}
"""The same of vectors that are one token's row: few numbers, over which errors do not average out. Measured: 1.24e-1
and 7.1e-1."""

CACHE_TOLERANCES: dict[str, Tolerance] = {
    "fp32": TOLERANCES[torch.float32],
    "bf16": Tolerance(norm=1e-2, bound=1e-1),
    "fp16": Tolerance(norm=1e-3, bound=1e-2),
    "int8": Tolerance(norm=3e-2, bound=4e-1),
}
"""The same in fp32 over a cache of each type. Measured: 4.4e-3 and 5e-2, 5e-4 and 5e-3, 1.2e-2 and 2.2e-1."""

KV_CACHE_TOLERANCES: dict[torch.dtype, Tolerance] = {
    torch.float32: Tolerance(norm=2e-6, bound=5e-5),
    torch.bfloat16: Tolerance(norm=5e-3, bound=1e-1),
    torch.float16: Tolerance(norm=6e-4, bound=2e-2),
    torch.int8: Tolerance(norm=2e-2, bound=2e-1),
}
"""Attention in fp32 over a cache of each type, against one over an fp32 cache: what storing keys and values costs."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Relative to the root mean square of what was expected."""

    norm: float
    worst: float
    worst_index: tuple[int, ...]

    def __str__(self) -> str:
        return f"relative error {self.norm:.2e} norm-wise, {self.worst:.2e} at {list(self.worst_index)}"


def measure_difference(actual: Any, expected: Any) -> Difference:
    """Of tensors or arrays of equal shape. NaN counts as infinitely far."""
    found, wanted = to_array(actual), to_array(expected)
    assert found.shape == wanted.shape, f"shape {found.shape} instead of {wanted.shape}"
    assert wanted.size, "nothing to compare"
    error = np.abs(found - wanted)
    error[np.isnan(error)] = np.inf
    scale = float(np.sqrt(np.mean(wanted**2))) or 1.0
    worst = np.unravel_index(int(error.argmax()), error.shape)
    norm = float(np.sqrt(np.mean(error**2))) / scale
    return Difference(norm, float(error[worst]) / scale, tuple(int(index) for index in worst))


def check_close(
    actual: Any,
    expected: Any,
    dtype: torch.dtype = torch.float32,
    *,
    tolerance: Tolerance | None = None,
    what: str = "",
) -> Difference:
    """Fails with both errors in the text where one is over the tolerance of `dtype`, or over `tolerance` if given."""
    allowed = tolerance or TOLERANCES[dtype]
    difference = measure_difference(actual, expected)
    assert difference.norm <= allowed.norm and difference.worst <= allowed.bound, (
        f"{what or 'values'}: {difference}; allowed {allowed.norm:.0e} and {allowed.bound:.0e} ({dtype})"
    )
    return difference


def to_array(values: Any) -> npt.NDArray[np.float64]:
    if isinstance(values, torch.Tensor):
        values = values.detach().double().cpu().numpy()
    return np.array(values, dtype=np.float64)
