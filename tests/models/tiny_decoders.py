"""Tiny random decoders of every family, made with transformers, and its logits for each sequence alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tiny_models import Ids, TinyModel
from torch import Tensor

from models.info import read_info

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 80,
}
GPT2_SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 80,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]


def llama(**rope: object) -> transformers.PreTrainedConfig:
    return transformers.LlamaConfig(**GROUPED, rope_parameters={"rope_theta": 500.0} | rope)


CONFIGS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "gpt2": lambda: transformers.GPT2Config(**GPT2_SIZES),
    "gpt2-by-layer": lambda: transformers.GPT2Config(
        **GPT2_SIZES, n_inner=40, scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True
    ),
    "gpt2-unscaled": lambda: transformers.GPT2Config(
        **GPT2_SIZES, scale_attn_weights=False, tie_word_embeddings=False, activation_function="relu"
    ),
    "llama": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama-biased": lambda: transformers.LlamaConfig(
        **GROUPED, head_dim=12, attention_bias=True, mlp_bias=True, hidden_act="gelu"
    ),
    "llama-linear": lambda: llama(rope_type="linear", factor=3.0),
    "llama-dynamic": lambda: llama(rope_type="dynamic", factor=3.0),
    "llama-llama3": lambda: llama(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=40,
    ),
    "llama-yarn": lambda: llama(rope_type="yarn", factor=4.0, original_max_position_embeddings=20),
    "llama-longrope": lambda: llama(
        rope_type="longrope",
        factor=4.0,
        short_factor=[1.0, 1.1, 1.2, 1.3],
        long_factor=[1.0, 2.0, 3.0, 4.0],
        original_max_position_embeddings=4,
    ),
    "mistral": lambda: transformers.MistralConfig(**GROUPED, sliding_window=7),
    "mistral-wide": lambda: transformers.MistralConfig(**GROUPED, sliding_window=None, head_dim=20),
    "qwen2": lambda: transformers.Qwen2Config(
        **GROUPED, use_sliding_window=True, sliding_window=9, max_window_layers=1, tie_word_embeddings=True
    ),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=24),
    "qwen3-biased": lambda: transformers.Qwen3Config(
        **GROUPED,
        head_dim=8,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=5,
        layer_types=LAYER_TYPES,
    ),
    "gemma": lambda: transformers.GemmaConfig(**SIZES | {"num_key_value_heads": 1}, head_dim=24),
    "gemma2": lambda: transformers.Gemma2Config(
        **GROUPED,
        head_dim=16,
        sliding_window=6,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=4.0,
    ),
}


def make_decoder(name: str, directory: Path) -> TinyModel:
    torch.set_num_threads(1)  # Other threads only wait for one another on matrices this small.
    torch.manual_seed(len(name))
    # eager: the only one of transformers' ways that caps scores.
    theirs = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation="eager").eval()
    randomize(theirs)
    theirs.save_pretrained(directory)
    return TinyModel(directory, theirs, read_info(directory))


@torch.no_grad()
def randomize(model: torch.nn.Module) -> None:
    """Larger than transformers' initial weights: those hardly attend, and would hide mistakes in it."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0, 0.3)
        elif parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.3)
        elif ".h." in name or ".layers." in name or "lm_head" in name:
            fan_in = parameter.shape[0 if ".h." in name else 1]
            parameter.normal_(0, 1.5 * fan_in**-0.5)
        else:
            parameter.normal_()


def make_ids(seqlens: Sequence[int], vocab_size: int = 101, seed: int = 0) -> list[Ids]:
    random = np.random.default_rng(seed)
    return [random.integers(0, vocab_size, seqlen) for seqlen in seqlens]


@torch.no_grad()
def run_alone(theirs: transformers.PreTrainedModel, ids: Sequence[Ids]) -> Tensor:
    """transformers' logits after each token of each sequence: [num_tokens, vocab_size]."""
    return torch.cat([theirs(torch.from_numpy(sequence)[None], use_cache=False).logits[0] for sequence in ids])
