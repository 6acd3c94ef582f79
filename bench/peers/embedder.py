"""Hugging Face's BERT with mean pooling and normalisation as one module, for the peers that start from PyTorch."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel


class Embedder(nn.Module):
    """Padded token ids and mask to normalised rows."""

    def __init__(self, model: Path, *, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> None:
        super().__init__()
        self.bert = AutoModel.from_pretrained(
            model, dtype=dtype, attn_implementation=attention, add_pooling_layer=False
        )
        self.config = self.bert.config
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden_states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden_states.dtype)
        means = (hidden_states * weights).sum(1) / weights.sum(1)
        return nn.functional.normalize(means.float(), dim=-1)
