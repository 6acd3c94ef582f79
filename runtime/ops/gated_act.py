"""`padless::gated_act`: the gate of a feed-forward block (Shazeer, 2020: GLU variants).

    x [num_rows, 2 * width], a gate and what it lets through -> act(gate) * other [num_rows, width]

`act`: silu, gelu, gelu_tanh or relu. With `dtype` uint8 the result is quantised for the int8 layers that read it
(`quantized_rows`), after `out_inverse_smooth`, by each row's range or by `out_scale`, `out_zero`.
"""

import torch
from torch import Tensor

from runtime.ops.linear_act import ACTIVATION, ACTIVATIONS
from runtime.ops.quantized_rows import quantize_rows, row_bytes
from runtime.ops.spec import define_op


def gated_act_shape(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    width = x.shape[1] // 2
    if dtype == torch.uint8:
        return x.new_empty(x.shape[0], row_bytes(width), dtype=dtype)
    return x.new_empty(x.shape[0], width)


def gated_act(
    x: Tensor,
    act: str,
    dtype: torch.dtype | None = None,
    out_inverse_smooth: Tensor | None = None,
    out_scale: float = 0.0,
    out_zero: int = 0,
) -> Tensor:
    """The reference: in fp32."""
    gate, other = x.float().chunk(2, dim=1)
    result = ACTIVATIONS[act](gate) * other
    if dtype == torch.uint8:
        return quantize_rows(result, out_inverse_smooth, out_scale, out_zero)
    return result.to(x.dtype)


SPEC = define_op(gated_act, gated_act_shape, words={"act": ACTIVATION})
OP = SPEC.target
