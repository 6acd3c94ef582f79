"""What config.json leaves unsaid of encoder-decoders, and what is refused in it: their part of `models.defaults`."""

from models.decoder_defaults import Keys

T5_POSITIONS = 4096
"""T5 has no positions: so far do the tables reach in which its distances are written out here."""

BART: Keys = {
    "hidden_act": "gelu",
    "max_position_embeddings": 1024,
    "pad_token_id": 1,
    "scale_embedding": False,
    "tie_word_embeddings": True,
    "type_vocab_size": 0,
}
T5: Keys = {
    "feed_forward_proj": "gated-gelu",
    "head_dim": 64,
    "layer_norm_eps": 1e-6,
    "max_position_embeddings": T5_POSITIONS,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": True,
    "type_vocab_size": 0,
}

DEFAULTS: dict[str, Keys] = {
    "bart": BART,
    "m2m_100": BART | {"hidden_act": "relu", "scale_embedding": True},
    "marian": BART | {"pad_token_id": 58100, "share_encoder_decoder_embeddings": True},
    "mbart": BART,
    "mt5": T5,
    "pegasus": BART | {"pad_token_id": 0},
    "t5": T5 | {"feed_forward_proj": "relu"},
    "umt5": T5,
    "whisper": BART
    | {"max_position_embeddings": 1500, "max_target_positions": 448, "num_mel_bins": 80, "pad_token_id": 50256},
}

ALWAYS_BART: Keys = {"layer_norm_eps": 1e-5}
FIXED: dict[str, Keys] = {
    **dict.fromkeys(("bart", "m2m_100", "marian", "mbart", "pegasus"), ALWAYS_BART),
    # transformers reads the key of scaled embeddings, and scales none.
    "whisper": ALWAYS_BART | {"scale_embedding": False},
}

BART_NAMES = {"activation_function": "hidden_act", "d_model": "hidden_size"}
T5_NAMES = {
    "d_ff": "encoder_ffn_dim",
    "d_kv": "head_dim",
    "d_model": "hidden_size",
    "layer_norm_epsilon": "layer_norm_eps",
    "num_decoder_layers": "decoder_layers",
    "num_heads": "encoder_attention_heads",
    "num_layers": "encoder_layers",
}
OTHER_NAMES: dict[str, dict[str, str]] = {
    **dict.fromkeys(("bart", "m2m_100", "marian", "mbart", "pegasus"), BART_NAMES),
    **dict.fromkeys(("mt5", "t5", "umt5"), T5_NAMES),
    "whisper": BART_NAMES | {"max_source_positions": "max_position_embeddings"},
}

STRAY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("bart", "m2m_100", "marian", "mbart", "pegasus"), ("hidden_act", "hidden_size")),
    **dict.fromkeys(("mt5", "t5", "umt5"), ("head_dim", "hidden_size", "max_position_embeddings")),
    "whisper": ("hidden_act", "hidden_size", "max_position_embeddings"),
}

BOTH: Keys = {"is_encoder_decoder": (True,), "tie_encoder_decoder": (False,)}
"""The second would make the layers of both stacks the same."""


def keep_shape(*, pre_norms: bool, embedding_norm: bool, sinusoids: bool) -> Keys:
    """Keys that older code followed, and newer takes from the model type alone: they must not say something else."""
    return BOTH | {
        "add_final_layer_norm": (pre_norms,),
        "normalize_before": (pre_norms,),
        "normalize_embedding": (embedding_norm,),
        "static_position_embeddings": (sinusoids,),
    }


SUPPORTED: dict[str, Keys] = {
    "bart": keep_shape(pre_norms=False, embedding_norm=True, sinusoids=False),
    "m2m_100": keep_shape(pre_norms=True, embedding_norm=False, sinusoids=True),
    "marian": keep_shape(pre_norms=False, embedding_norm=False, sinusoids=True),
    "mbart": keep_shape(pre_norms=True, embedding_norm=True, sinusoids=False),
    "pegasus": keep_shape(pre_norms=True, embedding_norm=False, sinusoids=True),
    # An encoder alone says that it is none of both.
    **dict.fromkeys(("mt5", "t5", "umt5"), BOTH | {"is_encoder_decoder": (True, False)}),
    "whisper": BOTH,
}
