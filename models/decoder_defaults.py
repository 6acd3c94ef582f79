"""What config.json leaves unsaid of decoders, and what is refused in it: their part of `models.defaults`."""

from typing import Any

Keys = dict[str, Any]

LLAMA: Keys = {
    "hidden_act": "silu",
    "layer_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "type_vocab_size": 0,
}
QWEN = LLAMA | {
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "use_sliding_window": False,
}
QWEN_MOE = QWEN | {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": False}
GEMMA = LLAMA | {
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
GEMMA2 = GEMMA | {"num_key_value_heads": 4, "query_pre_attn_scalar": 256, "sliding_window": 4096}

COHERE = LLAMA | {
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
NEOX = LLAMA | {"hidden_act": "gelu", "layer_norm_eps": 1e-5}
OLMO = LLAMA | {"layer_norm_eps": 1e-5}

DEFAULTS: dict[str, Keys] = {
    "cohere": COHERE | {"rope_theta": 5e5},
    "cohere2": COHERE | {"sliding_window": 4096, "sliding_window_pattern": 4},
    "falcon": NEOX
    | {
        "multi_query": True,
        "new_decoder_architecture": False,
        "parallel_attn": True,
        "tie_word_embeddings": True,
    },
    "gemma": GEMMA | {"num_key_value_heads": 16},
    "gemma2": GEMMA2 | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": GEMMA2
    | {
        "global_rope_theta": 1e6,
        "local_rope_theta": 1e4,
        "max_position_embeddings": 131072,
        "sliding_window_pattern": 6,
    },
    "gpt2": {
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "type_vocab_size": 0,
    },
    "gpt_neox": NEOX | {"attention_bias": True, "partial_rotary_factor": 0.25, "use_parallel_residual": True},
    "granite": LLAMA
    | {
        "attention_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
    },
    "llama": LLAMA,
    "mistral": LLAMA | {"max_position_embeddings": 4096 * 32, "num_key_value_heads": 8, "sliding_window": 4096},
    "mixtral": LLAMA
    | {
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 4096 * 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 8,
        "rope_theta": 1e6,
    },
    "olmo2": OLMO,
    "olmo3": OLMO
    | {
        "global_rope_theta": 5e5,
        "local_rope_theta": 5e5,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
    },
    "phi3": LLAMA
    | {
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 1.0,
    },
    "qwen2": QWEN,
    "qwen2_moe": QWEN_MOE
    | {
        "attention_bias": True,
        "moe_intermediate_size": 1408,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 16,
        "shared_expert_intermediate_size": 5632,
    },
    "qwen3": QWEN | {"head_dim": 128},
    "qwen3_moe": QWEN_MOE
    | {
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 4,
    },
    "smollm3": LLAMA
    | {
        "max_position_embeddings": 32768,
        "no_rope_layer_interval": 4,
        "num_key_value_heads": 4,
        "rope_theta": 2e6,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    },
    "stablelm": LLAMA
    | {
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 32,
        "partial_rotary_factor": 0.25,
        "use_parallel_residual": False,
    },
}

FIXED: dict[str, Keys] = {
    **{
        model_type: {"mlp_bias": False}
        for model_type in (
            *("cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "olmo2", "olmo3"),
            *("qwen2_moe", "qwen3", "qwen3_moe", "stablelm"),
        )
    },
    **{
        model_type: {"attention_bias": False, "mlp_bias": False}
        for model_type in ("mistral", "mixtral", "phi3", "qwen2")
    },
    "gpt2": {"attention_bias": True, "mlp_bias": True},
    "gpt_neox": {"mlp_bias": True},
}

RMS = {"rms_norm_eps": "layer_norm_eps"}
OTHER_NAMES: dict[str, dict[str, str]] = {
    **dict.fromkeys(("gemma", "gemma2", "granite", "llama", "mistral", "olmo2"), RMS),
    **dict.fromkeys(("phi3", "qwen2", "qwen3", "smollm3"), RMS),
    "falcon": {
        "activation": "hidden_act",
        "bias": "attention_bias",
        "ffn_hidden_size": "intermediate_size",
        "layer_norm_epsilon": "layer_norm_eps",
        "n_embed": "hidden_size",
        "num_kv_heads": "num_key_value_heads",
    },
    "mixtral": RMS | {"num_local_experts": "num_experts"},
    "qwen2_moe": RMS | {"num_local_experts": "num_experts", "qkv_bias": "attention_bias"},
    "qwen3_moe": RMS | {"num_local_experts": "num_experts"},
    "gemma3_text": RMS | {"rope_local_base_freq": "local_rope_theta", "rope_theta": "global_rope_theta"},
    "gpt2": {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_positions": "max_position_embeddings",
        "activation_function": "hidden_act",
        "layer_norm_epsilon": "layer_norm_eps",
    },
    "gpt_neox": {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"},
    "olmo3": RMS | {"rope_theta": "global_rope_theta"},
    "stablelm": {"use_qkv_bias": "attention_bias"},
}

STRAY: dict[str, tuple[str, ...]] = {
    "cohere2": ("head_dim",),
    "falcon": (
        *("attention_bias", "head_dim", "hidden_act", "intermediate_size", "layer_norm_eps", "mlp_bias"),
        "num_key_value_heads",
    ),
    "gpt_neox": ("head_dim", "num_key_value_heads", "partial_rotary_factor", "rope_theta"),
    "qwen2_moe": ("attention_bias", "head_dim"),
    "stablelm": ("attention_bias", "head_dim"),
}

ANY: Keys = {"is_decoder": (False, True)}
DECODER = ANY | {"partial_rotary_factor": (1,)}
GEMMA_GATE: Keys = {
    # The first checkpoints say gelu and mean the other: transformers has read it so ever since.
    "hidden_act": ("gelu_pytorch_tanh", "gelu"),
    "hidden_activation": ("gelu_pytorch_tanh",),
}
ONE_WAY: Keys = {"use_bidirectional_attention": (False,)}
COHERE2: Keys = {
    # Of its own code; transformers has one value of each written into its own.
    "layer_switch": (4,),
    "order_of_interleaved_layers": ("local_attn_first",),
    "position_embedding_type": ("rope_gptj",),
    "rotary_pct": (1,),
    "use_gated_activation": (True,),
    "use_parallel_block": (True,),
    "use_qk_norm": (False,),
}

SUPPORTED: dict[str, Keys] = {
    "cohere": DECODER | {"use_qk_norm": (False,)},
    "cohere2": DECODER | COHERE2,
    "falcon": DECODER | {"alibi": (False,), "apply_residual_connection_post_layernorm": (False,)},
    "gemma": DECODER | GEMMA_GATE | ONE_WAY,
    "gemma2": DECODER | GEMMA_GATE | ONE_WAY,
    # transformers keeps this key from Gemma 2 and caps nothing.
    "gemma3_text": DECODER | GEMMA_GATE | {"attn_logit_softcapping": (None,)},
    "gpt2": DECODER,
    "gpt_neox": ANY,
    "granite": DECODER,
    "llama": DECODER,
    # transformers lets every layer of it look back as far, whatever this key says.
    "mistral": DECODER | {"layer_types": ()},
    "mixtral": DECODER | {"layer_types": ()},
    "olmo2": DECODER | {"clip_qkv": ()},
    "olmo3": DECODER | {"clip_qkv": ()},
    "phi3": ANY | {"layer_types": ()},
    "qwen2": DECODER,
    "qwen2_moe": DECODER,
    "qwen3": DECODER,
    "qwen3_moe": DECODER | {"layer_types": ()},
    "smollm3": DECODER,
    "stablelm": ANY | {"qk_layernorm": (False,)},
}
