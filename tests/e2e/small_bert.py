"""A model of a few kilobytes that computes, for servers whose engines are not null."""

from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from tests.e2e.running_server import WORDS, make_model_directory

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def make_small_bert(directory: Path) -> Path:
    """With the tokenizer that null engines have."""
    make_model_directory(directory)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **SHAPE)).save_pretrained(directory)
    return directory
