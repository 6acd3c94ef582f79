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
FALCON_SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_hidden_size": 48,
    "max_position_embeddings": 80,
}
UNGROUPED = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
GROUPED = SIZES | {"num_key_value_heads": 2}
EXPERTS: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
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
    "gemma3_text": lambda: transformers.Gemma3TextConfig(
        **GROUPED | {"num_hidden_layers": 4},
        head_dim=16,
        sliding_window=6,
        query_pre_attn_scalar=24,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 900.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    ),
    "gemma3_text-biased": lambda: transformers.Gemma3TextConfig(
        **GROUPED,
        head_dim=16,
        sliding_window=6,
        attention_bias=True,
        final_logit_softcapping=4.0,
        tie_word_embeddings=False,
    ),
    "smollm3": lambda: transformers.SmolLM3Config(
        **GROUPED, pad_token_id=0, no_rope_layer_interval=2, attention_bias=True, rope_parameters={"rope_theta": 90.0}
    ),
    "smollm3-sliding": lambda: transformers.SmolLM3Config(
        **GROUPED, pad_token_id=0, no_rope_layers=[0, 1, 0], use_sliding_window=True, sliding_window=6
    ),
    "mixtral": lambda: transformers.MixtralConfig(
        **GROUPED, num_local_experts=5, num_experts_per_tok=2, sliding_window=7
    ),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
        **GROUPED,
        **EXPERTS,
        shared_expert_intermediate_size=36,
        mlp_only_layers=[1],
        use_sliding_window=True,
        sliding_window=6,
        max_window_layers=2,
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **GROUPED, **EXPERTS, head_dim=24, decoder_sparse_step=2, norm_topk_prob=True
    ),
    "qwen3_moe-all": lambda: transformers.Qwen3MoeConfig(
        **GROUPED, **EXPERTS | {"num_experts_per_tok": 6}, use_sliding_window=True, sliding_window=5
    ),
    "olmo2": lambda: transformers.Olmo2Config(**GROUPED),
    "olmo3": lambda: transformers.Olmo3Config(**GROUPED, sliding_window=6, layer_types=LAYER_TYPES),
    "granite": lambda: transformers.GraniteConfig(
        **GROUPED,
        attention_multiplier=0.2,
        embedding_multiplier=3.0,
        logits_scaling=4.0,
        residual_multiplier=0.6,
        mlp_bias=True,
    ),
    "phi3": lambda: transformers.Phi3Config(
        **GROUPED, pad_token_id=0, sliding_window=7, rope_parameters={"partial_rotary_factor": 0.5, "rope_theta": 90.0}
    ),
    "phi3-longrope": lambda: transformers.Phi3Config(
        **GROUPED,
        pad_token_id=0,
        original_max_position_embeddings=4,
        rope_parameters={
            "rope_type": "longrope",
            "factor": 4.0,
            "short_factor": [1.0, 1.1, 1.2],
            "long_factor": [1.0, 2.0, 3.0],
            "partial_rotary_factor": 0.75,
        },
    ),
    "stablelm": lambda: transformers.StableLmConfig(**GROUPED),
    "stablelm-parallel": lambda: transformers.StableLmConfig(
        **GROUPED,
        use_parallel_residual=True,
        use_qkv_bias=True,
        rope_parameters={"partial_rotary_factor": 0.5, "rope_theta": 90.0},
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**UNGROUPED),
    "gpt_neox-serial": lambda: transformers.GPTNeoXConfig(
        **UNGROUPED,
        use_parallel_residual=False,
        attention_bias=False,
        rope_parameters={"partial_rotary_factor": 0.5, "rope_theta": 90.0},
    ),
    "falcon": lambda: transformers.FalconConfig(**FALCON_SIZES),
    "falcon-grouped": lambda: transformers.FalconConfig(
        **FALCON_SIZES, new_decoder_architecture=True, num_kv_heads=2, bias=True, tie_word_embeddings=False
    ),
    "falcon-one-norm": lambda: transformers.FalconConfig(
        **FALCON_SIZES, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1
    ),
    "falcon-serial": lambda: transformers.FalconConfig(**FALCON_SIZES, multi_query=False, parallel_attn=False),
    "cohere": lambda: transformers.CohereConfig(**GROUPED, logit_scale=0.5, rope_parameters={"rope_theta": 90.0}),
    "cohere2": lambda: transformers.Cohere2Config(
        **GROUPED, sliding_window=6, attention_bias=True, layer_types=LAYER_TYPES, rope_parameters={"rope_theta": 90.0}
    ),
}

RARE = ["gemma3_text-biased", "smollm3-sliding", "olmo3", "phi3-longrope", "stablelm-parallel", "gpt_neox-serial"]
RARE += ["falcon-grouped", "falcon-one-norm", "falcon-serial", "cohere", "qwen2_moe", "qwen3_moe-all"]
"""What only slow tests are about: settings of families that have others above."""


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
        elif any(part in name for part in (".h.", ".layers.", ".block.", "lm_head")):
            fan_in = parameter.shape[0 if ".c_" in name else -1]  # GPT-2's lie [in, out].
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
