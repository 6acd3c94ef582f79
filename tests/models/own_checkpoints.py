"""Model directories and texts for encoders that transformers has no class for."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from tiny_models import Ids, TinyModel
from torch import Tensor

from models.info import read_info

Tensors = dict[str, Tensor]


def draw_tensors(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> Tensors:
    """As `tiny_models.randomize` draws them: by the names of norms, tables and linear layers."""
    random = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: Sequence[int]) -> Tensor:
        values = torch.randn(*shape, generator=random)
        if name.endswith("bias"):
            return 0.3 * values
        if "norm" in name.lower():
            return 1 + 0.3 * values
        return values if "embedding" in name else 1.5 * shape[-1] ** -0.5 * values

    return {name: draw(name, shape) for name, shape in shapes.items()}


def save_model(directory: Path, keys: Mapping[str, Any], tensors: Tensors) -> TinyModel:
    """What transformers makes of it stands in where there is nothing else."""
    (directory / "config.json").write_text(json.dumps(keys), encoding="utf-8")
    save_file(tensors, directory / "model.safetensors")
    theirs = transformers.BertModel(transformers.BertConfig(num_hidden_layers=1, hidden_size=12, vocab_size=2))
    return TinyModel(directory, theirs, read_info(directory))


def draw_texts(seqlens: Sequence[int], vocab_size: int) -> tuple[list[Ids], list[Ids]]:
    """Ids, and types: zeros, then ones."""
    random = np.random.default_rng(0)
    ids = [random.integers(1, vocab_size, seqlen) for seqlen in seqlens]
    return ids, [(np.arange(seqlen) >= random.integers(0, seqlen + 1)).astype(np.int64) for seqlen in seqlens]
