"""`padless::linear_act`: a linear layer, the activation after it, and what is added to the result.

    x [num_rows, in_features], weight [out_features, in_features], bias [out_features] or None,
        residual [num_rows, out_features] or None -> [num_rows, out_features]

`act`: gelu (by erf), gelu_tanh, relu, silu, tanh, or none. The weight may be wider than x (fp32 for bf16): the product
is then taken in the weight's type, and the result rounded to x's.

`padless::linear_act.packed` is the same over a weight packed for the CPU's instructions (`kernels/cpu/library.py`).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

OPTIONS = "Tensor? bias, str act, Tensor? residual=None"
torch.library.define("padless::linear_act", f"(Tensor x, Tensor weight, {OPTIONS}) -> Tensor")
torch.library.define("padless::linear_act.packed", f"(Tensor x, Tensor packed, int out_features, {OPTIONS}) -> Tensor")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


@torch.library.register_fake("padless::linear_act")
def linear_act_shape(
    x: Tensor, weight: Tensor, bias: Tensor | None, act: str, residual: Tensor | None = None
) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.register_fake("padless::linear_act.packed")
def linear_act_packed_shape(
    x: Tensor, packed: Tensor, out_features: int, bias: Tensor | None, act: str, residual: Tensor | None = None
) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


def linear_act(x: Tensor, weight: Tensor, bias: Tensor | None, act: str, residual: Tensor | None = None) -> Tensor:
    """The reference: the ops in turn."""
    result = ACTIVATIONS[act](functional.linear(x.to(weight.dtype), weight, bias))
    return (result if residual is None else result + residual.to(weight.dtype)).to(x.dtype)


torch.library.impl("padless::linear_act", "CompositeExplicitAutograd", linear_act)
OP = torch.ops.padless.linear_act.default
PACKED_OP = torch.ops.padless.linear_act.packed
