"""`padless::unfold`: each token's neighbours side by side, so that a convolution is a linear layer.

    hidden_states [num_tokens, width], cu_seqlens int32 [num_seqs + 1] -> [num_tokens, kernel_size * width]

Of token i those from i - kernel_size // 2 on, itself among them; where a sequence has no such token there are zeros.
`kernel_size` is odd.
"""

from itertools import pairwise

from torch import Tensor
from torch.nn import functional

from runtime.ops.spec import define_op


def unfold_shape(hidden_states: Tensor, kernel_size: int) -> Tensor:
    return hidden_states.new_empty(hidden_states.shape[0], kernel_size * hidden_states.shape[1])


def unfold(hidden_states: Tensor, cu_seqlens: Tensor, kernel_size: int) -> Tensor:
    """The reference."""
    out = unfold_shape(hidden_states, kernel_size)
    write_unfolded(hidden_states, cu_seqlens, kernel_size, out=out)
    return out


def write_unfolded(hidden_states: Tensor, cu_seqlens: Tensor, kernel_size: int, *, out: Tensor) -> None:
    reach = kernel_size // 2
    for start, end in pairwise(cu_seqlens.tolist()):
        padded = functional.pad(hidden_states[start:end], (0, 0, reach, reach))
        out[start:end] = padded.unfold(0, kernel_size, 1).transpose(1, 2).flatten(1)


SPEC = define_op(unfold, unfold_shape)
OP = SPEC.target
