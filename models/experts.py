"""Feed-forward blocks of several experts, of which each token goes through a few."""

import torch
from torch import Tensor, nn

from models.experts_config import ExpertsConfig
from runtime.ops import experts


class ExpertsFeedForward(nn.Module):
    """[num_tokens, hidden_size] -> the same, see `padless::experts`.

    `shared`: a block that all tokens go through beside their experts; what it gives is weighed for each (Qwen2-MoE).
    `has_bias`: one for all experts, added to their sum.
    """

    def __init__(
        self,
        config: ExpertsConfig,
        hidden_size: int,
        activation: str,
        *,
        is_gated: bool = True,
        has_bias: bool = False,
        shared: nn.Module | None = None,
    ):
        super().__init__()
        self.top_k, self.renormalizes = config.top_k, config.renormalizes
        self.activation, self.is_gated = activation, is_gated
        self.router = nn.Linear(hidden_size, config.num_experts, bias=False)
        up_width = config.width * (2 if is_gated else 1)
        self.up = nn.Parameter(torch.empty(config.num_experts, up_width, hidden_size))
        self.down = nn.Parameter(torch.empty(config.num_experts, hidden_size, config.width))
        self.bias = nn.Parameter(torch.empty(hidden_size)) if has_bias else None
        self.shared = shared
        self.shared_gate = None if shared is None else nn.Linear(hidden_size, 1, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        rows: Tensor = experts.OP(
            *(hidden_states, self.router.weight, self.up, self.down),
            *(self.top_k, self.activation, self.is_gated, self.renormalizes),
        )
        if self.bias is not None:
            rows = rows + self.bias
        if self.shared is not None and self.shared_gate is not None:
            # A sigmoid, by the activation that compiled layers have: torch's last bit depends on the rows beside.
            weights = torch.tanh(self.shared_gate(hidden_states * 0.5)) * 0.5 + 0.5
            rows = rows + weights * self.shared(hidden_states)
        return rows
