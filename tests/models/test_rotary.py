"""Tables of rotary positions against transformers' own, at sizes and with numbers of published models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_decoders import SIZES
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from models.decoder_config import read_decoder_config
from models.rotary import RotaryConfig, build_table

LLAMA_31 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
QWEN_25 = {"factor": 4.0, "original_max_position_embeddings": 2048}
GROWING = [1.0 + index / 8 for index in range(32)]
LONGROPE = {"rope_type": "longrope", "short_factor": GROWING[:1] * 32, "long_factor": GROWING}

SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": LLAMA_31 | {"rope_type": "llama3", "rope_theta": 5e5},
    "yarn": QWEN_25 | {"rope_type": "yarn", "rope_theta": 1e6},
    "yarn of DeepSeek": QWEN_25 | {"rope_type": "yarn", "mscale": 0.7, "mscale_all_dim": 0.3, "beta_fast": 16},
    "yarn not truncated": QWEN_25 | {"rope_type": "yarn", "truncate": False, "attention_factor": 1.3},
    "yarn without a factor": QWEN_25 | {"rope_type": "yarn", "factor": None},
    "longrope, short": LONGROPE | {"original_max_position_embeddings": 8192},
    "longrope, long": LONGROPE | {"original_max_position_embeddings": 4096},
    "longrope with factors": LONGROPE
    | {"original_max_position_embeddings": 1024, "factor": 3.0, "attention_factor": 1.2},
}


@pytest.mark.parametrize("name", SCALINGS)
def test_tables_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    sizes = SIZES | {"head_dim": 64, "max_position_embeddings": 8192}
    config = transformers.LlamaConfig(**sizes, rope_parameters={"rope_theta": 1e4} | SCALINGS[name])
    config.save_pretrained(tmp_path)
    ours = read_decoder_config(tmp_path).rotaries[0]
    assert ours is not None
    table = build_table(ours, 8192)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(8192)[None])
    assert (table.dtype, table.shape) == (torch.float32, (8192, 64))
    # A rounding in the last bit of a frequency is multiplied by the position.
    torch.testing.assert_close(table, torch.cat([cos[0, :, :32], sin[0, :, :32]], 1), rtol=0, atol=1e-4)


def test_is_built_on_the_cpu() -> None:
    """Models are built on `meta`."""
    with torch.device("meta"):
        table = build_table(RotaryConfig(8, 1e4), 3)
    assert table.device.type == "cpu"
    torch.testing.assert_close(table[0], torch.tensor([1.0] * 4 + [0.0] * 4), rtol=0, atol=0)


OLD: dict[str, dict[str, Any]] = {
    "default": {"rope_theta": 1e6},
    "linear": {"rope_scaling": {"type": "linear", "factor": 2.5}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 10000},
    "llama3": {"rope_scaling": LLAMA_31 | {"rope_type": "llama3"}, "rope_theta": 500000.0},
    "yarn": {"rope_scaling": QWEN_25 | {"type": "yarn"}, "rope_theta": 1000000},
    "longrope, long": {"rope_scaling": LONGROPE, "original_max_position_embeddings": 4096},
}
"""As transformers wrote them before version 5."""


@pytest.mark.parametrize("name", OLD)
def test_old_spelling(name: str, tmp_path: Path) -> None:
    sizes = SIZES | {"head_dim": 64, "max_position_embeddings": 8192}
    keys = sizes | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(keys | {"rope_parameters": {"rope_theta": 1e4} | SCALINGS[name]}), encoding="utf-8")
    expected = read_decoder_config(tmp_path)
    path.write_text(json.dumps(keys | OLD[name]), encoding="utf-8")
    assert read_decoder_config(tmp_path) == expected
