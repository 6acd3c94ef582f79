"""Hugging Face's encoder with mean pooling and normalisation as one module, for the peers that start from PyTorch."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel


class Embedder(nn.Module):
    """Padded token ids and mask to normalised rows."""

    def __init__(self, model: Path, *, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> None:
        super().__init__()
        options = {"add_pooling_layer": False} if AutoConfig.from_pretrained(model).model_type == "bert" else {}
        try:
            self.encoder = AutoModel.from_pretrained(model, dtype=dtype, attn_implementation=attention, **options)
        except ValueError:  # DeBERTa's has one way of computing it, "eager"
            self.encoder = AutoModel.from_pretrained(model, dtype=dtype, attn_implementation="eager", **options)
        self.config = self.encoder.config
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden_states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden_states.dtype)
        means = (hidden_states * weights).sum(1) / weights.sum(1)
        return nn.functional.normalize(means.float(), dim=-1)
