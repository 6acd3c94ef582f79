"""`padless::experts`: a feed-forward block of several experts, of which each token goes through a few (Shazeer et al.,
2017).

    x [num_rows, hidden_size], router [num_experts, hidden_size], up [num_experts, width or 2 * width, hidden_size],
        down [num_experts, hidden_size, width] -> like x

The router's scores, in fp32 whatever the type of x, become probabilities of all experts; those of the `top_k` largest
are a token's weights of what these experts give, and with `renormalize` they are divided by their sum. An expert is
down(act(up)), or with `is_gated` down(act(gate) * other) where `up` holds the gate's rows and then the other's.

With `up_scale` fp32 [num_experts, features of up] and `down_scale` [num_experts, hidden_size] both weights are int8,
and rows are quantised, each by its own range: `padless::linear_int8`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from runtime.ops.linear_act import ACTIVATION, ACTIVATIONS
from runtime.ops.linear_int8 import linear_int8
from runtime.ops.spec import define_op


def experts_shape(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def experts(
    x: Tensor,
    router: Tensor,
    up: Tensor,
    down: Tensor,
    top_k: int,
    act: str,
    is_gated: bool,
    renormalize: bool,
    up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
) -> Tensor:
    """The reference: in fp32, one expert after the other."""
    weights, chosen = choose_experts(x, router, top_k, renormalize)
    out = torch.zeros(x.shape, device=x.device)
    for expert in range(len(router)):
        tokens, rank = (chosen == expert).nonzero(as_tuple=True)
        rows = multiply(x[tokens].float(), up, up_scale, expert)
        rows = apply_gate(rows, act) if is_gated else ACTIVATIONS[act](rows)
        out[tokens] += weights[tokens, rank, None] * multiply(rows, down, down_scale, expert)
    return out.to(x.dtype)


def choose_experts(x: Tensor, router: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """Weights fp32 and experts, both [num_rows, top_k], the largest first; of equal ones the first."""
    probabilities = functional.linear(x.float(), router.float()).softmax(-1)
    ordered, experts_in_order = probabilities.sort(dim=-1, descending=True, stable=True)
    weights = ordered[:, :top_k]
    return weights / weights.sum(-1, keepdim=True) if renormalize else weights, experts_in_order[:, :top_k]


def apply_gate(rows: Tensor, act: str) -> Tensor:
    gate, other = rows.chunk(2, dim=1)
    return ACTIVATIONS[act](gate) * other


def multiply(rows: Tensor, weight: Tensor, scale: Tensor | None, expert: int) -> Tensor:
    if scale is None:
        return functional.linear(rows, weight[expert].float())
    return linear_int8(rows, weight[expert], scale[expert])


SPEC = define_op(experts, experts_shape, words={"act": ACTIVATION})
OP = SPEC.target
