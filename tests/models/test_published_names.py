"""Encoders under the names of tensors that published files have, which are not those of transformers' classes."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import make_model
from torch import Tensor

from models.info import read_info
from models.load import load_model

Tensors = dict[str, Tensor]

NOMIC_BERT = (
    (r"^nomic_bert\.", "bert."),
    (r"embeddings\.LayerNorm", "emb_ln"),
    (r"(^|bert\.)layers\.", r"\1encoder.layers."),
    (r"self_attn\.o_proj", "attn.out_proj"),
    (r"self_attn", "attn"),
    (r"post_attention_layernorm", "norm1"),
    (r"post_mlp_layernorm", "norm2"),
    (r"mlp\.up_proj", "mlp.fc11"),
    (r"mlp\.gate_proj", "mlp.fc12"),
    (r"mlp\.down_proj", "mlp.fc2"),
)


def rename(tensors: Tensors, rules: tuple[tuple[str, str], ...]) -> Tensors:
    renamed: Tensors = {}
    for name, value in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def join(tensors: Tensors, parts: tuple[str, ...], whole: str) -> Tensors:
    """Several tensors below one module as one, their rows below each other."""
    first = [name for name in tensors if f".{parts[0]}." in name]
    joined = {
        name.replace(parts[0], whole): torch.cat([tensors[name.replace(parts[0], part)] for part in parts])
        for name in first
    }
    rest = {name: value for name, value in tensors.items() if not any(f".{part}." in name for part in parts)}
    return rest | joined


def publish_nomic_bert(tensors: Tensors) -> Tensors:
    return join(rename(tensors, NOMIC_BERT), ("q_proj", "k_proj", "v_proj"), "Wqkv")


GTE = (
    (r"^gte\.", "new."),
    (r"(^|new\.)layers\.", r"\1encoder.layer."),
    (r"self_attn", "attention"),
    (r"post_attention_layernorm", "attn_ln"),
    (r"post_mlp_layernorm", "mlp_ln"),
    (r"lm_head\.layer_norm", "lm_head.norm"),
)


def publish_gte(tensors: Tensors) -> Tensors:
    joined = join(rename(tensors, GTE), ("q_proj", "k_proj", "v_proj"), "qkv_proj")
    return join(joined, ("up_proj", "gate_proj"), "up_gate_proj")


PUBLISH: dict[str, Callable[[Tensors], Tensors]] = {"gte": publish_gte, "nomic_bert": publish_nomic_bert}


def load(directory: Path, task: str) -> Tensors:
    return dict(load_model(directory, read_info(directory, task=task)).fill().state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("prefix", ["own", ""])
@pytest.mark.parametrize("name", PUBLISH)
def test_published_names(name: str, prefix: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """With the prefix of a checkpoint with a head, and without; in every type that weights are stored in."""
    auto = transformers.AutoModelForSequenceClassification if prefix else transformers.AutoModel
    theirs = make_model(name, tmp_path, auto).theirs.to(dtype)
    own = {key: value.clone() for key, value in theirs.state_dict().items()}
    save_file(own, tmp_path / "model.safetensors")
    task = "classify" if prefix else "embed"
    expected = load(tmp_path, task)
    published = PUBLISH[name](own)
    assert not published.keys() & {key for key in own if "layers" in key}
    save_file(published, tmp_path / "model.safetensors")
    found = load(tmp_path, task)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert load_file(tmp_path / "model.safetensors").keys() == published.keys()
