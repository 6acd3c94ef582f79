"""Every key of config.json of these decoders is read, without meaning here, or refused by its name."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from tiny_decoders import CONFIGS

from models.decoder_config import DecoderConfig, read_decoder_config
from models.info import ModelDirectoryError, ModelInfo, read_info

TRAINING = {
    "attention_dropout",
    "classifier_dropout",
    "embd_pdrop",
    "hidden_dropout",
    "initializer_range",
    "output_router_logits",
    "pretraining_tp",
    "resid_pdrop",
    "router_aux_loss_coef",
    "router_jitter_noise",
}
TOKENS = {"bos_token_id", "eos_token_id", "pad_token_id"}
"""The tokenizer's business, and that of answers' ends."""
WITHOUT_MEANING = TRAINING | TOKENS | {"is_decoder", "use_cache"} | set(transformers.PreTrainedConfig().to_dict())
ELSEWHERE = {
    "cohere2": {"head_dim"},
    "gemma3_text": {"_sliding_window_pattern"},
    "phi3": {"original_max_position_embeddings"},
}
"""Keys with tests of their own, or that transformers computes."""

ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
SIZES: dict[str, Any] = ROPE | {
    "vocab_size": 102,
    "hidden_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 90,
    "hidden_act": "relu",
    "tie_word_embeddings": None,  # the other one
}
GROUPED = SIZES | {"num_key_value_heads": 1}
LLAMA = GROUPED | {"rms_norm_eps": 1e-3}
OTHER_TYPES = ["full_attention", "full_attention", "sliding_attention"]
EXPERTS = {
    "decoder_sparse_step": 3,
    "mlp_only_layers": [2],
    "moe_intermediate_size": 12,
    "norm_topk_prob": None,  # the other one
    "num_experts": 7,
    "num_experts_per_tok": 2,
}
LAYERED = {"layer_types": OTHER_TYPES, "sliding_window": 9, "rope_parameters": {"full_attention": {"rope_theta": 7.0}}}

OTHER_VALUES: dict[str, dict[str, Any]] = {
    "llama": LLAMA | {"attention_bias": True, "head_dim": 14, "mlp_bias": True, "num_attention_heads": 8},
    "gemma3_text": {key: value for key, value in LLAMA.items() if key not in ("hidden_act", "hidden_size")}
    | LAYERED
    | {
        "hidden_size": 36,
        "head_dim": 14,
        "layer_types": ["full_attention", *OTHER_TYPES],
        "query_pre_attn_scalar": 7,
        "final_logit_softcapping": 2.0,
        "attention_bias": True,
        "use_bidirectional_attention": True,
    },
    "smollm3": LLAMA | {"attention_bias": False, "mlp_bias": True, "no_rope_layer_interval": 3},
    "smollm3-sliding": {
        "layer_types": OTHER_TYPES,
        "no_rope_layers": [1, 1, 0],
        "sliding_window": 9,
        "use_sliding_window": False,
    },
    "olmo2": LLAMA | {"attention_bias": True},
    "olmo3": LLAMA | LAYERED | {"attention_bias": True},
    "mixtral": LLAMA | {"head_dim": 14, "num_experts_per_tok": 3, "num_local_experts": 7, "sliding_window": 9},
    "qwen2_moe": LLAMA
    | EXPERTS
    | {
        "layer_types": OTHER_TYPES,
        "max_window_layers": 0,
        "qkv_bias": False,
        "shared_expert_intermediate_size": 9,
        "sliding_window": 9,
        "use_sliding_window": False,
    },
    "qwen3_moe": LLAMA
    | EXPERTS
    | {"attention_bias": True, "head_dim": 14, "mlp_only_layers": [1], "num_local_experts": 7},
    "qwen3_moe-all": {"sliding_window": 9, "use_sliding_window": False},
    "granite": LLAMA
    | {
        "attention_bias": True,
        "attention_multiplier": 0.7,
        "embedding_multiplier": 0.7,
        "logits_scaling": 0.7,
        "mlp_bias": False,
        "residual_multiplier": 0.7,
    },
    "phi3": LLAMA | {"sliding_window": 9},
    "stablelm": GROUPED | {"layer_norm_eps": 1e-3, "use_parallel_residual": True, "use_qkv_bias": True},
    "gpt_neox": SIZES | {"layer_norm_eps": 1e-3, "attention_bias": False, "use_parallel_residual": False},
    "falcon": ROPE
    | {
        "vocab_size": 102,
        "hidden_size": 64,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
        "ffn_hidden_size": 40,
        "max_position_embeddings": 90,
        "activation": "relu",
        "layer_norm_epsilon": 1e-3,
        "tie_word_embeddings": None,
        "bias": True,
        "multi_query": False,
        "new_decoder_architecture": True,
        "parallel_attn": False,
    },
    "falcon-grouped": {"num_kv_heads": 1, "num_ln_in_parallel_attn": 1},
    "cohere": GROUPED | {"layer_norm_eps": 1e-3, "attention_bias": True, "logit_scale": 0.7},
    "cohere2": GROUPED
    | {
        "layer_norm_eps": 1e-3,
        "attention_bias": False,
        "layer_types": OTHER_TYPES,
        "logit_scale": 0.7,
        "sliding_window": 9,
    },
}
SCALING = {"rope_scaling": {"type": "linear", "factor": 2.0}}
OLD_ROPE = SCALING | {"rope_theta": 5.0}
LEGACY: dict[str, dict[str, Any]] = {
    "llama": OLD_ROPE,
    "gemma3_text": OLD_ROPE | {"rope_local_base_freq": 5.0, "sliding_window_pattern": 2},
    "smollm3": OLD_ROPE,
    "olmo2": OLD_ROPE,
    "olmo3": OLD_ROPE,
    "granite": OLD_ROPE,
    "phi3": OLD_ROPE | {"partial_rotary_factor": 0.25},
    "stablelm": OLD_ROPE | {"partial_rotary_factor": 0.5},
    "gpt_neox": SCALING | {"rotary_emb_base": 5.0, "rotary_pct": 0.5},
    "falcon": OLD_ROPE | {"n_embed": 64},
    "cohere": OLD_ROPE,
    "cohere2": OLD_ROPE | {"sliding_window_pattern": 2},
}
"""Of files by older versions."""
REFUSED: dict[str, dict[str, Any]] = {
    "llama": {"partial_rotary_factor": 0.5},
    "gemma3_text": {
        "attn_logit_softcapping": 2.0,
        "hidden_activation": "relu",
        "is_causal": False,
        "partial_rotary_factor": 0.5,
        "rope_parameters": {"rope_theta": 5.0},
        "sliding_window_pattern": 0,
    },
    "smollm3": {"no_rope_layers": [1, 0], "no_rope_layer_interval": 0, "partial_rotary_factor": 0.5},
    "olmo2": {"clip_qkv": 8.0, "partial_rotary_factor": 0.5},
    "olmo3": {"clip_qkv": 8.0, "layer_types": ["full_attention"]},
    "mixtral": {"num_experts_per_tok": 6, "layer_types": ["full_attention"] * 3},
    "qwen2_moe": {"mlp_only_layers": ["1"], "num_experts": 0, "num_experts_per_tok": 0},
    "qwen3_moe": {"decoder_sparse_step": 0, "layer_types": ["full_attention"] * 3, "moe_intermediate_size": 0},
    "granite": {"logits_scaling": 0, "residual_multiplier": -1.0},
    "phi3": {"layer_types": ["full_attention"] * 3, "partial_rotary_factor": 0.4},
    "stablelm": {"partial_rotary_factor": 1.5, "qk_layernorm": True},
    "gpt_neox": {"rotary_pct": 0.1},
    "falcon": {"alibi": True, "apply_residual_connection_post_layernorm": True},
    "falcon-grouped": {"num_ln_in_parallel_attn": 3},
    "cohere": {"use_qk_norm": True},
    "cohere2": {
        "layer_switch": 3,
        "order_of_interleaved_layers": "global_attn_first",
        "position_embedding_type": "absolute",
        "rotary_pct": 0.5,
        "use_gated_activation": False,
        "use_parallel_block": False,
        "use_qk_norm": True,
    },
}


OVERRULED = {
    "layer_types": (
        *(
            "max_window_layers",
            "no_rope_layer_interval",
            "no_rope_layers",
            "num_hidden_layers",
            "sliding_window_pattern",
        ),
        "use_sliding_window",
    ),
    "no_rope_layers": ("no_rope_layer_interval", "num_hidden_layers"),
}
"""Keys that are left out where others are to count."""


def list_cases(values: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    return [(name, key) for name, keys in values.items() for key in keys]


def read(directory: Path, keys: dict[str, Any]) -> tuple[DecoderConfig, ModelInfo]:
    (directory / "config.json").write_text(json.dumps(keys), encoding="utf-8")
    return read_decoder_config(directory), read_info(directory, task="embed", pooling="mean")


def make_keys(name: str, *changed: str) -> dict[str, Any]:
    """As transformers writes them, without what older versions have other keys for. `changed`: keys that will be."""
    config = CONFIGS[name]()
    keys: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    for key in ("rope_parameters", *(each for each, by in OVERRULED.items() if set(changed) & set(by))):
        keys.pop(key, None)
    return keys | {"architectures": [type(config).__name__.replace("Config", "ForCausalLM")]}


@pytest.mark.parametrize("name", [name for name in OTHER_VALUES if "-" not in name])
def test_every_key_is_accounted_for(name: str) -> None:
    variants = [each for each in OTHER_VALUES if each.partition("-")[0] == name]
    told = set[str]().union(*(values.get(each, {}) for values in (OTHER_VALUES, REFUSED) for each in variants))
    keys = type(CONFIGS[name]())().to_dict().keys() - {"model_type"}
    assert not keys - WITHOUT_MEANING - told - ELSEWHERE.get(name, set())


@pytest.mark.parametrize(("name", "key"), [*list_cases(OTHER_VALUES), *list_cases(LEGACY)])
def test_keys_are_read(name: str, key: str, tmp_path: Path) -> None:
    keys = make_keys(name, key)
    other = (OTHER_VALUES[name] | LEGACY.get(name, {}))[key]
    if key in ("norm_topk_prob", "tie_word_embeddings"):
        other = not keys[key]
    assert read(tmp_path, keys) != read(tmp_path, keys | {key: other})


@pytest.mark.parametrize(("name", "key"), list_cases(REFUSED))
def test_keys_are_refused(name: str, key: str, tmp_path: Path) -> None:
    words = {"is_causal": "both ways", "rotary_pct": "(partial_rotary_factor|rotary_pct)"}.get(key, key)
    with pytest.raises(ModelDirectoryError, match=rf"config\.json: .*{words}"):
        read(tmp_path, make_keys(name, key) | {key: REFUSED[name][key]})


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_keys_without_meaning_change_nothing(name: str, tmp_path: Path) -> None:
    keys = make_keys(name)
    others = dict.fromkeys(TRAINING, 0.25) | dict.fromkeys(TOKENS, 7)
    stray = {
        "cohere2": {"head_dim": 4},
        "falcon": {"head_dim": 4, "num_key_value_heads": 3, "hidden_act": "tanh", "num_ln_in_parallel_attn": 2},
        "gpt_neox": {"head_dim": 4, "num_key_value_heads": 3, "rope_theta": 3.0},
        "stablelm": {"head_dim": 4, "attention_bias": True},
    }
    assert read(tmp_path, keys) == read(tmp_path, keys | others | stray.get(name, {}))


def test_longrope_of_phi3(tmp_path: Path) -> None:
    """Its first files call it su."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    keys = make_keys("phi3") | {"original_max_position_embeddings": 8}
    new = read(tmp_path, keys | {"rope_parameters": {"rope_type": "longrope"} | factors})
    old = keys | {"rope_scaling": {"type": "su"} | factors}
    assert read(tmp_path, old) == new
    assert read(tmp_path, old | {"original_max_position_embeddings": 16}) != new
    code = {"auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}}
    assert read(tmp_path, old | code) == new


def test_command_r7b_under_the_keys_of_its_own_code(tmp_path: Path) -> None:
    keys = make_keys("cohere2")
    own = {
        "layer_switch": 4,
        "order_of_interleaved_layers": "local_attn_first",
        "position_embedding_type": "rope_gptj",
        "rotary_pct": 1.0,
        "use_gated_activation": True,
        "use_parallel_block": True,
        "use_qk_norm": False,
    }
    assert read(tmp_path, keys | own) == read(tmp_path, keys)


def test_windows_that_look_both_ways(tmp_path: Path) -> None:
    """Half of what the key says to each side, rounded down."""
    for width, reach in ((8, 4), (9, 4), (512, 256)):
        keys = make_keys("gemma3_text") | {"sliding_window": width, "use_bidirectional_attention": True}
        config, _ = read(tmp_path, keys)
        assert (config.windows, config.is_causal) == ((reach, reach, -1, reach), False)
