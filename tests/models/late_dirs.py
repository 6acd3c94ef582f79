"""Tiny ColBERTs in the three ways in which they are published, over a base of `sentence_dirs`."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_dirs import HIDDEN_SIZE, write_json, write_module
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

DIM = 12
DENSE = {
    "in_features": HIDDEN_SIZE,
    "out_features": DIM,
    "bias": False,
    "activation_function": "torch.nn.modules.linear.Identity",
}
METADATA = {
    "query_maxlen": 24,
    "doc_maxlen": 30,
    "dim": DIM,
    "mask_punctuation": True,
    "attend_to_mask_tokens": False,
    "query_token_id": "[unused0]",
    "doc_token_id": "[unused1]",
    "similarity": "cosine",
}


def make_stanford(base: Path, directory: Path, **metadata: Any) -> Path:
    """Weights as HF_ColBERT saves them: the encoder below `bert.`, the projection beside it."""
    shutil.copytree(base, directory)
    tensors = {f"bert.{name}": value for name, value in load_file(base / "model.safetensors").items()}
    random = torch.Generator().manual_seed(3)
    tensors["linear.weight"] = torch.randn((DIM, HIDDEN_SIZE), generator=random)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    write_json(directory / "config.json", config | {"architectures": ["HF_ColBERT"]})
    write_json(directory / "artifact.metadata", METADATA | metadata)
    return directory


def make_pylate(base: Path, directory: Path, **settings: Any) -> Path:
    """As PyLate saves it: its prefixes and lengths are of the whole model, and its Dense is its own class."""
    shutil.copytree(base, directory)
    write_module(directory / "1_Dense", "Dense", DENSE, seed=4)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
    ]
    write_json(directory / "modules.json", modules)
    given = {
        "model_type": "ColBERT",
        "query_prefix": "[unused0] ",
        "document_prefix": "[unused1] ",
        "query_length": 20,
        "document_length": 28,
        "attend_to_expansion_tokens": False,
        "skiplist_words": [":", "a", "##b"],
    }
    given = {key: value for key, value in (given | settings).items() if value is not None}
    write_json(directory / "config_sentence_transformers.json", given)
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": 17, "do_lower_case": False})
    return directory


def make_own(base: Path, directory: Path, *, similarity: str = "maxsim", **settings: Any) -> Path:
    """As sentence-transformers' MultiVectorEncoder saves itself. `settings`: of its Transformer."""
    settings = {"query_expansion": {"strategy": "fixed", "length": 22}, "document_length": 26} | settings
    torch.manual_seed(5)
    modules = [
        Transformer(str(base), **settings),
        Dense(HIDDEN_SIZE, 20, activation_function=torch.nn.Tanh(), module_input_name="token_embeddings"),
        Dense(20, DIM, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings"),
        MultiVectorMask(skiplist_words=["a", ":"], skiplist_tasks=["query", "document"]),
        Normalize(module_input_name="token_embeddings"),
    ]
    model = MultiVectorEncoder(
        modules=modules, prompts={"query": "A: ", "document": "B"}, similarity_fn_name=similarity, device="cpu"
    )
    model.save_pretrained(str(directory))
    return directory


FORMATS = {
    "stanford": make_stanford,
    "stanford-attended": lambda base, directory: make_stanford(base, directory, attend_to_mask_tokens=True),
    "stanford-punctuation": lambda base, directory: make_stanford(base, directory, mask_punctuation=False),
    "pylate": make_pylate,
    "pylate-bare": lambda base, directory: make_pylate(base, directory, do_query_expansion=False, skiplist_words=None),
    "pylate-first": lambda base, directory: make_pylate(base, directory, model_type=None),
    "own": make_own,
    "own-min": lambda base, directory: make_own(
        base, directory, similarity="meanmaxsim", query_expansion={"strategy": "min", "length": 12, "token": "c"}
    ),
    "own-attended": lambda base, directory: make_own(
        base, directory, query_expansion={"strategy": "fixed", "length": 22, "attend": True}
    ),
    "own-bare": lambda base, directory: make_own(base, directory, query_expansion=None, query_length=9),
}
