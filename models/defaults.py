"""What config.json leaves unsaid: defaults and other names of its keys, per model type.

The values are those of transformers' configuration classes. Pure data, so every side can read it. Decoders' are in
`models.decoder_defaults`, encoder-decoders' in `models.seq2seq_defaults`.
"""

from models import decoder_defaults, seq2seq_defaults
from models.decoder_defaults import Keys as Keys

BERT: Keys = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "type_vocab_size": 2,
}
ROBERTA = BERT | {"pad_token_id": 1}

DEBERTA = BERT | {
    "conv_act": "tanh",
    "conv_kernel_size": 0,
    "layer_norm_eps": 1e-7,
    "max_relative_positions": -1,
    "norm_rel_ebd": "none",
    "pooler_hidden_act": "gelu",
    "pos_att_type": [],
    "position_biased_input": True,
    "position_buckets": -1,
    "relative_attention": False,
    "share_att_key": False,
    "type_vocab_size": 0,
}

ROTARY: Keys = {"attention_bias": False, "mlp_bias": False, "type_vocab_size": 0}
"""Encoders with rotary positions, as far as they agree."""

GTE = BERT | {"max_position_embeddings": 8192, "pad_token_id": 1, "rope_theta": 160000.0, "type_vocab_size": 1}

JINA_V3 = BERT | {
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 8194,
    "pad_token_id": 1,
    "task_instructions": {
        "retrieval.query": "Represent the query for retrieving evidence documents: ",
        "retrieval.passage": "Represent the document for retrieval: ",
    },
    "type_vocab_size": 1,
}
"""The instructions are those that the published adapters were trained with."""
FLASH = "xlm-roberta-flash"
"""The model type of Jina's code of XLM-R with rotary positions, of which config.json says that it is XLM-R."""

JINA_BERT = ("jina_bert", "jina_bert_qk_norm")
"""Model types of which config.json says that they are BERT."""

DEFAULTS: dict[str, Keys] = {
    "albert": BERT | {"embedding_size": 128, "hidden_act": "gelu_new", "num_hidden_groups": 1, "inner_group_num": 1},
    "bert": BERT,
    "camembert": ROBERTA,
    "convbert": BERT
    | {"conv_kernel_size": 9, "embedding_size": 768, "head_ratio": 2, "num_groups": 1, "pad_token_id": 1},
    "deberta": DEBERTA,
    "deberta-v2": DEBERTA,
    "distilbert": BERT,
    "electra": BERT | {"embedding_size": 128},
    "ernie": BERT | {"task_type_vocab_size": 3, "use_task_id": False},
    "eurobert": ROTARY
    | {
        "hidden_act": "silu",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "pad_token_id": 128001,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    "gte": GTE,
    "jina_embeddings_v3": JINA_V3 | {"rope_theta": 20000.0},
    # BERT's own, of which find_model_type says what it is.
    **dict.fromkeys(JINA_BERT, BERT | {"hidden_act": "geglu", "position_embedding_type": "alibi"}),
    "modernbert": ROTARY
    | {
        "classifier_activation": "gelu",
        "classifier_bias": False,
        "classifier_pooling": "cls",
        "decoder_bias": True,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "local_attention": 128,
        "local_rope_theta": 10000.0,
        "max_position_embeddings": 8192,
        "norm_bias": False,
        "pad_token_id": 50283,
    },
    "mpnet": BERT,
    # Its own code's, as far as they are not the same.
    "new": GTE | {"max_position_embeddings": 2048, "pad_token_id": 0, "rope_theta": 10000.0},
    "nomic_bert": BERT
    | {
        "hidden_act": "silu",
        "attention_bias": False,
        "max_position_embeddings": 2048,
        "max_trained_positions": 2048,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "moe_every_n_layers": 0,
        "rope_theta": 1000.0,
    },
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    FLASH: JINA_V3 | {"rope_theta": 10000.0, "task_instructions": {}},
    "xlm-roberta-xl": ROBERTA | {"layer_norm_eps": 1e-5, "max_position_embeddings": 514, "type_vocab_size": 1},
    **decoder_defaults.DEFAULTS,
    **seq2seq_defaults.DEFAULTS,
}
"""By `model_type`; those listed are the ones served."""

ROTARY_ENCODERS = ("eurobert", "gte", "jina_embeddings_v3", "modernbert", "new", "nomic_bert", FLASH)

FIXED: dict[str, Keys] = {
    # DistilBERT and MPNet have no token types, and transformers writes these numbers into their code.
    "distilbert": {"layer_norm_eps": 1e-12, "type_vocab_size": 0},
    "mpnet": {"pad_token_id": 1, "type_vocab_size": 0},
    **{model_type: {"attention_bias": True, "mlp_bias": False, "norm_bias": True} for model_type in ("gte", "new")},
    **{name: {"attention_bias": True, "mlp_bias": True, "norm_bias": True} for name in ("jina_embeddings_v3", FLASH)},
    **{model_type: {"type_vocab_size": 0} for model_type in ("eurobert", "modernbert")},
    "nomic_bert": {"norm_bias": True},
    **decoder_defaults.FIXED,
    **seq2seq_defaults.FIXED,
}
"""Wins over config.json."""

OTHER_NAMES: dict[str, dict[str, str]] = {
    "eurobert": {"rms_norm_eps": "layer_norm_eps"},
    "distilbert": {
        "dim": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "hidden_dim": "intermediate_size",
        "activation": "hidden_act",
    },
    **{model_type: {"feed_forward_type": "hidden_act"} for model_type in JINA_BERT},
    "modernbert": {"hidden_activation": "hidden_act", "norm_eps": "layer_norm_eps"},
    "nomic_bert": {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_positions": "max_position_embeddings",
        "layer_norm_epsilon": "layer_norm_eps",
        "qkv_proj_bias": "attention_bias",
        "rotary_emb_base": "rope_theta",
    },
    FLASH: {"rotary_emb_base": "rope_theta"},
    **decoder_defaults.OTHER_NAMES,
    **seq2seq_defaults.OTHER_NAMES,
}

STRAY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(JINA_BERT, ("hidden_act",)),
    # What came with v2.
    "deberta": ("conv_act", "conv_kernel_size", "norm_rel_ebd", "position_buckets", "share_att_key"),
    "eurobert": ("layer_norm_eps", "position_embedding_type"),
    "gte": ("num_key_value_heads",),
    "jina_embeddings_v3": ("num_key_value_heads", "position_embedding_type"),
    "new": ("num_key_value_heads",),
    "nomic_bert": ("attention_bias", "mlp_bias", "num_key_value_heads", "position_embedding_type"),
    "modernbert": ("hidden_act", "layer_norm_eps", "num_key_value_heads", "position_embedding_type"),
    **decoder_defaults.STRAY,
    **seq2seq_defaults.STRAY,
}
"""Keys that mean nothing there, though files have them, and that are another's name for us."""

MEANT_BY_NULL = (
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "head_dim",
    "num_key_value_heads",
    "sliding_window",
)
"""Keys whose null says none of it, or what follows from others; anywhere else null leaves the default."""

OFFSET_POSITIONS = ("camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl")
"""Model types whose positions start behind the padding id: that many rows of the table, and one, are not for tokens."""

SUPPORTED: Keys = {
    "add_cross_attention": (False,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "position_embedding_type": ("absolute",),
    "pruned_heads": ({},),
    "quantization_config": (),
}
"""Keys that change what is computed, and the values we compute. An empty tuple: the key must not be there."""

OWN_CODE = ("eurobert", "falcon", "gte", *JINA_BERT, "new", "nomic_bert", "phi3", FLASH)
"""Model types published with code of their own, which is not run: their files here compute the same."""

JINA_CODE: Keys = {"emb_pooler": ("mean",), "position_embedding_type": ("alibi",)}
BY_DISTANCE: Keys = {"position_embedding_type": ("absolute", "relative_key", "relative_key_query")}
GTE_CODE: Keys = {
    "head_dim": (None,),
    "layer_norm_type": ("layer_norm",),
    "logn_attention_clip1": (False,),
    "logn_attention_scale": (False,),
    "partial_rotary_factor": (1,),
    "position_embedding_type": ("rope",),
}
NOMIC_BERT: Keys = {
    "activation_function": ("swiglu", "gelu"),
    "causal": (False,),
    "expert_choice_router": (False,),
    "ffn_div": (1,),
    "num_shared_experts": (0,),
    "parallel_block": (False,),
    "partial_rotary_factor": (1,),
    "prenorm": (False,),
    "rotary_emb_fraction": (1.0,),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_attn_weights": (True,),
    "use_rms_norm": (False,),
}
"""Keys of its own code."""

SUPPORTED_BY_TYPE: dict[str, Keys] = {
    "albert": {"down_scale_factor": (1,), "gap_size": (0,), "net_structure_type": (0,), "num_memory_blocks": (0,)},
    **dict.fromkeys(JINA_BERT, JINA_CODE),
    **dict.fromkeys(("bert", "camembert", "electra", "ernie", "roberta", "xlm-roberta"), BY_DISTANCE),
    "deberta": {"talking_head": (False,)},
    "deberta-v2": {"conv_groups": (1,), "norm_rel_ebd": ("none", "layer_norm")},
    "eurobert": {"partial_rotary_factor": (1,)},
    "gte": GTE_CODE,
    "jina_embeddings_v3": {"head_dim": (None,), "partial_rotary_factor": (1,)},
    "modernbert": {"head_dim": (None,), "partial_rotary_factor": (1,)},
    # transformers writes 32 into MPNet's code, so no other number was ever trained with it.
    "mpnet": {"relative_attention_num_buckets": (32,)},
    "new": GTE_CODE,
    "nomic_bert": NOMIC_BERT,
    FLASH: {"emb_pooler": ("mean",), "position_embedding_type": ("rotary",), "truncate_dim": ()},
    **decoder_defaults.SUPPORTED,
    **seq2seq_defaults.SUPPORTED,
}


def complete_keys(keys: Keys) -> Keys:
    """The keys of config.json under BERT's names, with defaults where the file has none or null."""
    model_type = find_model_type(keys)
    names, stray = OTHER_NAMES.get(model_type, {}), STRAY.get(model_type, ())
    given = {
        names.get(key, key): value
        for key, value in keys.items()
        if (value is not None or key in MEANT_BY_NULL) and key not in stray
    }
    return DEFAULTS.get(model_type, {}) | given | FIXED.get(model_type, {}) | {"model_type": model_type}


def find_model_type(keys: Keys) -> str:
    """That of the file, which for JinaBERT is BERT's: its code, of which there are two, goes by `auto_map`.

    For Jina v3's code it is XLM-R's, or not there.
    """
    model_type = str(keys.get("model_type"))
    if keys.get("position_embedding_type") == "rotary" and keys.get("model_type") in (None, "xlm-roberta"):
        return FLASH
    if model_type != "bert" or keys.get("position_embedding_type") != "alibi":
        return model_type
    return "jina_bert_qk_norm" if "qk-post-norm" in str(keys.get("auto_map")) else "jina_bert"
