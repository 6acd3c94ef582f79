"""Layers that low-rank adapters change (Hu et al., 2021): each row is computed with its own adapter, or with none."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.adapters_config import AdaptersConfig
from runtime.ops import lora


class AdaptedLinear(nn.Linear):
    """x Wᵀ + b, and (x Aᵀ) B of the row's adapter, where B holds the scale: see `padless::lora`."""

    def __init__(self, in_features: int, out_features: int, adapters: AdaptersConfig | None):
        super().__init__(in_features, out_features)
        self.lora_down = self.lora_up = None
        if adapters is not None:
            self.lora_down = nn.Parameter(torch.empty(adapters.count, adapters.rank, in_features))
            self.lora_up = nn.Parameter(torch.empty(adapters.count, adapters.rank, out_features))

    def forward(self, x: Tensor, adapter_ids: Tensor) -> Tensor:  # type: ignore[override]
        """`adapter_ids`: see `Batch`."""
        rows = functional.linear(x, self.weight, self.bias)
        if self.lora_up is None:
            return rows
        adapted: Tensor = lora.OP(rows, x, self.lora_up, adapter_ids, self.lora_down)
        return adapted


class AdaptedEmbedding(nn.Embedding):
    """Rows of a table, and A B of the row's adapter, of which A is a table as well: that of each adapter behind that of
    the one before."""

    def __init__(self, num_embeddings: int, embedding_dim: int, adapters: AdaptersConfig | None):
        super().__init__(num_embeddings, embedding_dim)
        self.lora_down = self.lora_up = None
        if adapters is not None:
            self.lora_down = nn.Parameter(torch.empty(adapters.count * num_embeddings, adapters.rank))
            self.lora_up = nn.Parameter(torch.empty(adapters.count, adapters.rank, embedding_dim))

    def forward(self, ids: Tensor, adapter_ids: Tensor) -> Tensor:  # type: ignore[override]
        rows = super().forward(ids)
        if self.lora_down is None:
            return rows
        places = torch.clamp_min(adapter_ids - 1, 0) * self.num_embeddings + ids
        adapted: Tensor = lora.OP(rows, functional.embedding(places, self.lora_down), self.lora_up, adapter_ids)
        return adapted


class MergedEmbedding(nn.Embedding):
    """A table so small that each adapter has its own, behind that of none."""

    def __init__(self, num_embeddings: int, embedding_dim: int, adapters: AdaptersConfig | None):
        super().__init__(num_embeddings * (1 + (adapters.count if adapters else 0)), embedding_dim)
        self.step = num_embeddings if adapters else 0

    def forward(self, ids: Tensor, adapter_ids: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(adapter_ids * self.step + ids if self.step else ids)
