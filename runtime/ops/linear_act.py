"""`padless::linear_act`: a linear layer and the activation after it.

    x [num_rows, in_features], weight [out_features, in_features], bias [out_features] or None
        -> [num_rows, out_features]

`act`: gelu (by erf), gelu_tanh, relu, silu, tanh, or none. The weight may be wider than x (fp32 for bf16): the product
is then taken in the weight's type, and the result rounded to x's.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

torch.library.define("padless::linear_act", "(Tensor x, Tensor weight, Tensor? bias, str act) -> Tensor")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


@torch.library.register_fake("padless::linear_act")
def linear_act_shape(x: Tensor, weight: Tensor, bias: Tensor | None, act: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def linear_act(x: Tensor, weight: Tensor, bias: Tensor | None, act: str) -> Tensor:
    """The reference: the two ops in turn."""
    return ACTIVATIONS[act](functional.linear(x.to(weight.dtype), weight, bias)).to(x.dtype)


torch.library.impl("padless::linear_act", "CompositeExplicitAutograd", linear_act)
OP = torch.ops.padless.linear_act.default
