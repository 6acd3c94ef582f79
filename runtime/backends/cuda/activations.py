"""Activations inside kernels, by the words of `runtime.ops.linear_act`; in fp32."""

import triton
import triton.language as tl


@triton.jit
def activate(x, ACT: tl.constexpr):
    if ACT == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACT == "gelu_tanh":
        # tanh(y) = 2 * sigmoid(2 * y) - 1, for which GPUs have the exponential.
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACT == "relu":
        # Not a maximum, which would hide NaN.
        x = tl.where(x < 0.0, 0.0, x)
    elif ACT == "silu":
        x = x * tl.sigmoid(x)
    elif ACT == "tanh":
        x = 2.0 * tl.sigmoid(2.0 * x) - 1.0
    else:
        tl.static_assert(ACT == "none")
    return x
