"""Linear layers whose weights alone are rounded: tiles become 16 bits again on their way to the matrix instructions.

What decoding takes is the time to read weights. They are read once for 16 rows, and by enough programs at a time: those
of a weight with few columns have a slice of its depth each.
"""

from torch import Tensor

from runtime.backends.cuda.gemm import Weight, launch_linear

LEAST_SLICE = 512
"""Numbers; of a depth that is cut."""


def linear_weight_only(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
    act: str = "none",
    residual: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    launch_linear(x, Weight(weight, scale, zero=zero), bias, act, residual, least_slice=LEAST_SLICE, out=out)
