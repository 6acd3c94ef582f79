"""`padless::add_norm`: LayerNorm or RMSNorm of a tensor, or of the sum of two: a layer's output and its residual.

    x, residual [num_rows, hidden_size] (or None), weight and bias [hidden_size] (or None) -> like x, or quantised rows

Mean and variance are taken in fp32 whatever the type of x. With `dtype` uint8 the result is quantised for the int8
layers that read it (`quantized_rows`), after `out_inverse_smooth`, by each row's range or by `out_scale`, `out_zero`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from runtime.ops.quantized_rows import quantize_rows, row_bytes
from runtime.ops.spec import define_op


def add_norm_shape(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype == torch.uint8:
        return x.new_empty(x.shape[0], row_bytes(x.shape[1]), dtype=dtype)
    return torch.empty_like(x, dtype=dtype or x.dtype, memory_format=torch.contiguous_format)


def add_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    is_rms: bool = False,
    dtype: torch.dtype | None = None,
    out_inverse_smooth: Tensor | None = None,
    out_scale: float = 0.0,
    out_zero: int = 0,
) -> Tensor:
    """The reference: sum and norm in fp32."""
    summed = x.float() if residual is None else x.float() + residual.float()
    if is_rms:
        normed = functional.rms_norm(summed, summed.shape[-1:], weight.float(), eps)
        normed = normed if bias is None else normed + bias.float()
    else:
        bias = None if bias is None else bias.float()
        normed = functional.layer_norm(summed, summed.shape[-1:], weight.float(), bias, eps)
    if dtype == torch.uint8:
        return quantize_rows(normed, out_inverse_smooth, out_scale, out_zero)
    return normed.to(dtype or x.dtype)


SPEC = define_op(add_norm, add_norm_shape)
OP = SPEC.target
