"""`padless::dynamic_conv`: each token's neighbours in its own sequence, weighted and summed (Wu et al., 2019).

    values [num_tokens, num_heads * head_dim], kernels [num_tokens, num_heads * kernel_size],
        cu_seqlens int32 [num_seqs + 1] -> like values

Head by head, the weights of a token are its row of `kernels`, through a softmax if asked; or the same for all tokens,
where there is one row. Which neighbours, see `padless::unfold`. A head may be a single column: a depthwise convolution.
"""

import torch
from torch import Tensor

from runtime.ops.spec import define_op
from runtime.ops.unfold import unfold


def dynamic_conv_shape(values: Tensor) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def dynamic_conv(
    values: Tensor, kernels: Tensor, cu_seqlens: Tensor, kernel_size: int, softmax: bool = False
) -> Tensor:
    """The reference: in fp32."""
    weights = kernels.float().unflatten(1, (-1, kernel_size)).transpose(1, 2)
    if softmax:
        weights = weights.softmax(1)
    neighbours = unfold(values.float(), cu_seqlens, kernel_size)
    rows = neighbours.unflatten(1, (kernel_size, weights.shape[2], -1))
    return (rows * weights[..., None]).sum(1).flatten(1).to(values.dtype)


def write_convolved(
    values: Tensor, kernels: Tensor, cu_seqlens: Tensor, kernel_size: int, softmax: bool = False, *, out: Tensor
) -> None:
    out.copy_(dynamic_conv(values, kernels, cu_seqlens, kernel_size, softmax))


SPEC = define_op(dynamic_conv, dynamic_conv_shape)
OP = SPEC.target
