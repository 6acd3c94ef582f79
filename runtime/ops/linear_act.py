"""`padless::linear_act`: a linear layer, the activation after it, and what is added to the result.

    x [num_rows, in_features], weight [out_features, in_features], bias [out_features] or None,
        residual [num_rows, out_features] or None -> [num_rows, out_features]

`act`: gelu (by erf), gelu_tanh, relu, silu, tanh, or none. The weight may be wider than x (fp32 for bf16): the product
is then taken in the weight's type, and the result rounded to x's.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from runtime.ops.spec import Words, define_op

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
ACTIVATION = Words("Activation", tuple(ACTIVATIONS))


def linear_act_shape(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def finish(sums: Tensor, bias: Tensor | None, act: str, residual: Tensor | None) -> Tensor:
    """What follows the sums of a layer whose weight is rounded, in fp32."""
    result = ACTIVATIONS[act](sums if bias is None else sums + bias.float())
    return result if residual is None else result + residual.float()


def linear_act(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, act: str = "none", residual: Tensor | None = None
) -> Tensor:
    """The reference: the ops in turn."""
    bias = None if bias is None else bias.to(weight.dtype)
    result = ACTIVATIONS[act](functional.linear(x.to(weight.dtype), weight, bias))
    return (result if residual is None else result + residual.to(weight.dtype)).to(x.dtype)


SPEC = define_op(linear_act, linear_act_shape, words={"act": ACTIVATION})
OP = SPEC.target
