"""What config.json leaves unsaid: defaults and other names of its keys, per model type.

The values are those of transformers' configuration classes. Pure data and no imports, so every side can read it.
"""

from typing import Any

Keys = dict[str, Any]

BERT: Keys = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "type_vocab_size": 2,
}
ROBERTA = BERT | {"pad_token_id": 1}

DEFAULTS: dict[str, Keys] = {
    "albert": BERT | {"embedding_size": 128, "hidden_act": "gelu_new", "num_hidden_groups": 1, "inner_group_num": 1},
    "bert": BERT,
    "camembert": ROBERTA,
    "distilbert": BERT,
    "electra": BERT | {"embedding_size": 128},
    "ernie": BERT | {"task_type_vocab_size": 3, "use_task_id": False},
    "mpnet": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
}
"""By `model_type`; those listed are the ones served."""

FIXED: dict[str, Keys] = {
    # DistilBERT and MPNet have no token types, and transformers writes these numbers into their code.
    "distilbert": {"layer_norm_eps": 1e-12, "type_vocab_size": 0},
    "mpnet": {"pad_token_id": 1, "type_vocab_size": 0},
}
"""Wins over config.json."""

OTHER_NAMES: dict[str, dict[str, str]] = {
    "distilbert": {
        "dim": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "hidden_dim": "intermediate_size",
        "activation": "hidden_act",
    },
}

OFFSET_POSITIONS = ("camembert", "mpnet", "roberta", "xlm-roberta")
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

SUPPORTED_BY_TYPE: dict[str, Keys] = {
    "albert": {"down_scale_factor": (1,), "gap_size": (0,), "net_structure_type": (0,), "num_memory_blocks": (0,)},
    # transformers writes 32 into MPNet's code, so no other number was ever trained with it.
    "mpnet": {"relative_attention_num_buckets": (32,)},
}


def complete_keys(keys: Keys) -> Keys:
    """The keys of config.json under BERT's names, with defaults where the file has none or null."""
    model_type = str(keys.get("model_type"))
    names = OTHER_NAMES.get(model_type, {})
    given = {names.get(key, key): value for key, value in keys.items() if value is not None}
    return DEFAULTS.get(model_type, {}) | given | FIXED.get(model_type, {})
