"""`padless::linear_fp8`: a linear layer over rows and weights of e4m3, 8-bit floats, summed in fp32.

    x [num_rows, in_features], weight e4m3 [out_features, in_features or more], scale fp32 [out_features],
        bias or None, residual [num_rows, out_features] or None -> [num_rows, out_features], of x's type

The layer rounds the rows itself, each by its own scale: its largest number becomes the largest of e4m3, 448. Columns
that the weight has more are zeros. `act` and `residual` are applied to the sums.
"""

import torch
from torch import Tensor
from torch.nn import functional

from runtime.ops.linear_act import ACTIVATION, finish, linear_act_shape
from runtime.ops.spec import define_op

E4M3 = torch.float8_e4m3fn
MAX_E4M3 = 448.0
LEAST_SCALE = float(torch.finfo(torch.float32).tiny)
"""Less has no inverse in fp32."""


def round_to_e4m3(rows: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 [num_rows, width] as e4m3 of that shape and scales fp32 [num_rows, 1]: rows are about their product.

    The scale of a row that has a number which is none, or infinite, is not finite.
    """
    largest = rows.abs().amax(1, keepdim=True)
    scale = torch.where(largest == 0, 1.0, largest / MAX_E4M3).clamp(min=LEAST_SCALE)
    return (rows * (1 / scale)).clamp(-MAX_E4M3, MAX_E4M3).to(E4M3), scale


def linear_fp8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    act: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """The reference: sums in fp32."""
    rows, row_scale = round_to_e4m3(x.float())
    sums = functional.linear(rows.float(), weight.float()[:, : x.shape[1]]) * (row_scale * scale)
    return finish(sums, bias, act, residual).to(x.dtype)


SPEC = define_op(linear_fp8, linear_act_shape, words={"act": ACTIVATION})
OP = SPEC.target
