"""`padless::rotate`: rotary positions (Su et al., 2021).

    x [num_tokens, num_heads, head_dim], position_ids [num_tokens],
    table fp32 [max_positions, rotary_dim], cosines and then sines of rotary_dim / 2 angles -> like x

The first `rotary_dim` numbers of each head are turned by the row of the token's position, element i together with
i + rotary_dim / 2; the others stay. In fp32, rounded once.
"""

import torch
from torch import Tensor

from runtime.ops.spec import define_op


def rotate_shape(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def rotate(x: Tensor, position_ids: Tensor, table: Tensor) -> Tensor:
    """The reference."""
    return turn_heads(x, table[position_ids])


def turn_heads(x: Tensor, angles: Tensor) -> Tensor:
    """By angles of each token: [num_tokens, rotary_dim]."""
    half = angles.shape[1] // 2
    cos, sin = angles[:, None, :half], angles[:, None, half:]
    first, second, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return torch.cat([turned.to(x.dtype), rest], -1)


SPEC = define_op(rotate, rotate_shape)
OP = SPEC.target
