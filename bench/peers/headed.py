"""Hugging Face's model with the head that its directory has, as one module, for the peers that start from PyTorch."""

import json
from pathlib import Path

import torch
import transformers
from embedder import Embedder
from torch import Tensor, nn


class Headed(nn.Module):
    """Padded token ids and mask to logits, of sequences or of tokens. All token types are 0."""

    def __init__(self, model: Path, architecture: str, attention: str) -> None:
        super().__init__()
        kind = getattr(transformers, architecture)
        self.model = kind.from_pretrained(model, dtype=torch.float32, attn_implementation=attention)
        self.config = self.model.config
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def load_module(model: Path, *, attention: str = "sdpa") -> nn.Module:
    """A classifier if the directory is one; else mean pooling and normalisation."""
    (architecture,) = json.loads((model / "config.json").read_text())["architectures"]
    if architecture.endswith("Classification"):
        return Headed(model, architecture, attention)
    return Embedder(model, attention=attention)
