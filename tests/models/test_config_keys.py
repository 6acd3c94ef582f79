"""Every key of config.json of encoders unlike BERT is read, without meaning here, or refused by its name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import CONFIGS

from models.config import EncoderConfig, read_config
from models.defaults import NOMIC_BERT, OTHER_NAMES
from models.info import ModelDirectoryError, ModelInfo, read_info
from models.rotary import build_table

TRAINING = {
    "attention_dropout",
    "attention_probs_dropout_prob",
    "hidden_dropout_prob",
    "embedding_dropout",
    "classifier_dropout",
    "deterministic_flash_attn",
    "initializer_cutoff_factor",
    "initializer_range",
    "mlp_dropout",
    "pooler_dropout",
    "pretraining_tp",
    "sparse_pred_ignore_index",
    "sparse_prediction",
}
TOKENS = {"bos_token_id", "cls_token_id", "eos_token_id", "sep_token_id"}
"""The tokenizer's business."""
GENERATION = {"mask_token_id", "use_cache"}
TENSORS = {"legacy"}
"""What the names of the weights say too."""
WITHOUT_MEANING = TRAINING | TOKENS | GENERATION | TENSORS | set(transformers.PreTrainedConfig().to_dict())

SIZES: dict[str, Any] = {
    "vocab_size": 102,
    "hidden_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 90,
    "pad_token_id": 3,
}
DEBERTA = SIZES | {
    "tie_word_embeddings": False,
    "type_vocab_size": 3,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-3,
    "relative_attention": False,
    "max_relative_positions": 33,
    "pos_att_type": "c2p",
    "pooler_hidden_act": "tanh",
}
OTHER_VALUES: dict[str, dict[str, Any]] = {
    "deberta": DEBERTA | {"position_biased_input": False},
    "deberta-v2": DEBERTA | {"position_biased_input": True},
    "eurobert": SIZES
    | {
        "num_key_value_heads": 1,
        "head_dim": 14,
        "hidden_act": "relu",
        "rms_norm_eps": 1e-3,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 7.0},
        "attention_bias": True,
        "mlp_bias": True,
        "classifier_pooling": "bos",
    },
    "jina_bert": SIZES
    | {
        "tie_word_embeddings": False,
        "type_vocab_size": 3,
        "feed_forward_type": "reglu",
        "layer_norm_eps": 1e-3,
    },
    "jina_embeddings_v3": SIZES
    | {
        "tie_word_embeddings": False,
        "type_vocab_size": 3,
        "hidden_act": "relu",
        "layer_norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 7.0},
    },
    "modernbert": SIZES
    | {
        "tie_word_embeddings": False,
        "hidden_activation": "relu",
        "norm_eps": 1e-3,
        "norm_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "layer_types": ["full_attention"] * 3,
        "rope_parameters": {"full_attention": {"rope_theta": 7.0}},
        "local_attention": 40,
        "decoder_bias": False,
        "classifier_pooling": "mean",
        "classifier_bias": True,
        "classifier_activation": "tanh",
    },
    "gte": SIZES
    | {
        "tie_word_embeddings": False,
        "type_vocab_size": 3,
        "hidden_act": "relu",
        "layer_norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 7.0},
    },
    "nomic_bert": SIZES
    | {
        "type_vocab_size": 3,
        "head_dim": 14,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 7.0},
    },
    "xlm-roberta-xl": SIZES
    | {
        "tie_word_embeddings": False,
        "type_vocab_size": 3,
        "hidden_act": "relu",
        "layer_norm_eps": 1e-3,
    },
}
STRAY: dict[str, dict[str, Any]] = {
    "deberta": {"position_buckets": 6, "share_att_key": True, "conv_kernel_size": 3, "norm_rel_ebd": "layer_norm"},
    "jina_bert": {"hidden_act": "tanh", "attn_implementation": "torch"},
    "modernbert": {"layer_norm_eps": 0.5, "hidden_act": "tanh", "position_embedding_type": "sans_pos"},
}
"""What files have that means nothing there."""
JINA: dict[str, Any] = {
    "architectures": ["JinaBertForMaskedLM"],
    "auto_map": {"AutoModel": "another/jina-bert-implementation--modeling_bert.JinaBertModel"},
    "emb_pooler": "mean",
    "feed_forward_type": "geglu",
    "position_embedding_type": "alibi",
}
"""Of its own code, beside BERT's; transformers has no class of it."""
LEGACY: dict[str, dict[str, Any]] = {
    "deberta": {"embedding_size": 16},
    "deberta-v2": {
        "position_buckets": 6,
        "share_att_key": False,
        "norm_rel_ebd": "none",
        "embedding_size": 16,
        "conv_kernel_size": 5,
        "conv_act": "relu",
    },
    "eurobert": {"rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "modernbert": {
        "global_attn_every_n_layers": 2,
        "global_rope_theta": 5.0,
        "local_rope_theta": 5.0,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "jina_embeddings_v3": {"rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "gte": {"rope_theta": 5.0, "rope_scaling": {"type": "ntk", "factor": 2.0}},
    "nomic_bert": {
        "n_embd": 64,
        "n_layer": 5,
        "n_head": 2,
        "n_inner": 48,
        "n_positions": 90,
        "layer_norm_epsilon": 1e-3,
        "mlp_fc1_bias": True,
        "mlp_fc2_bias": True,
        "qkv_proj_bias": True,
        "rotary_emb_base": 5.0,
    },
}
"""Of files by older versions, or without a default in transformers' class."""
REFUSED: dict[str, dict[str, Any]] = {
    "deberta": {"is_decoder": True, "pooler_hidden_size": 5, "pos_att_type": "p2p", "talking_head": True},
    "deberta-v2": {
        "attention_head_size": 5,
        "conv_groups": 2,
        "conv_kernel_size": 4,
        "is_decoder": True,
        "norm_rel_ebd": "batch_norm",
        "pooler_hidden_size": 5,
        "pos_att_type": "c2p|p2p",
        "position_buckets": 126,  # of 63 distances that are told apart
    },
    "eurobert": {
        "classifier_pooling": "max",
        "clf_pooling": "mean",  # beside a classifier_pooling that says something else
        "is_decoder": True,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 40},
    },
    "jina_bert": {
        "add_cross_attention": True,
        "emb_pooler": "cls",
        "feed_forward_type": "original",
        "is_decoder": True,
        "position_embedding_type": "relative_key",  # with another, it would be BERT
    },
    "modernbert": {
        "classifier_pooling": "max",
        "hidden_activation": "laplace",
        "layer_types": ["full_attention"],
        "local_attention": 0,
        "partial_rotary_factor": 0.5,
        "rope_parameters": {"rope_theta": 5.0},
        "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
        "quantization_config": {"bits": 4},
    },
    "jina_embeddings_v3": {"head_dim": 14, "is_decoder": True, "partial_rotary_factor": 0.5},
    "gte": {
        "head_dim": 14,
        "layer_norm_type": "rms_norm",
        "logn_attention_clip1": True,
        "logn_attention_scale": True,
        "partial_rotary_factor": 0.5,
        "position_embedding_type": "absolute",
        "rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 0.1},
    },
    "nomic_bert": {
        "activation_function": "gelu",
        "causal": True,
        "expert_choice_router": True,
        "ffn_div": 2,
        "moe_every_n_layers": 2,  # gated
        "num_shared_experts": 1,
        "parallel_block": True,
        "prenorm": True,
        "rotary_emb_fraction": 0.5,
        "rotary_emb_interleaved": True,
        "rotary_emb_scale_base": 512,
        "scale_attn_by_inverse_layer_idx": True,
        "scale_attn_weights": False,
        "use_rms_norm": True,
    },
    "xlm-roberta-xl": {
        "add_cross_attention": True,
        "is_decoder": True,
        "position_embedding_type": "relative_key",
    },
}


def read(directory: Path, keys: dict[str, Any]) -> tuple[EncoderConfig, ModelInfo]:
    (directory / "config.json").write_text(json.dumps(keys), encoding="utf-8")
    return read_config(directory), read_info(directory, task="sparse")


def make_keys(name: str) -> dict[str, Any]:
    """As transformers writes them, without what older versions have other keys for."""
    config = make_config(name)
    keys: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    for key in ("layer_types", "pooler_hidden_size", "rope_parameters"):
        keys.pop(key, None)
    keys["architectures"] = [type(config).__name__.replace("Config", "ForMaskedLM")]
    return keys | JINA if name == "jina_bert" else keys


def make_config(name: str) -> transformers.PreTrainedConfig:
    return CONFIGS["bert" if name == "jina_bert" else name]()


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_every_key_is_accounted_for(name: str) -> None:
    own = JINA.keys() if name == "jina_bert" else set()
    keys = (type(make_config(name))().to_dict().keys() | own) - {"auto_map", "model_type"}
    unknown = keys - WITHOUT_MEANING - OTHER_VALUES[name].keys() - REFUSED[name].keys() - STRAY.get(name, {}).keys()
    assert not unknown
    assert not OTHER_VALUES[name].keys() - keys


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name, keys in OTHER_VALUES.items() for key in (*keys, *LEGACY.get(name, ()))]
)
def test_keys_are_read(name: str, key: str, tmp_path: Path) -> None:
    keys = make_keys(name)
    other = (OTHER_VALUES[name] | LEGACY.get(name, {}))[key]
    assert read(tmp_path, keys) != read(tmp_path, keys | {key: other})


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in REFUSED.items() for key in keys])
def test_keys_are_refused(name: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=r"config\.json: .*"):
        read(tmp_path, make_keys(name) | {key: REFUSED[name][key]})


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_keys_without_meaning_change_nothing(name: str, tmp_path: Path) -> None:
    keys = make_keys(name)
    others = dict.fromkeys(TRAINING, 0.25) | dict.fromkeys(TOKENS, 7)
    expected = read(tmp_path, keys)
    assert read(tmp_path, keys | others | STRAY.get(name, {})) == expected


@pytest.mark.parametrize("pooling", ["bos", "mean"])
def test_eurobert_also_has_the_key_of_its_own_code(pooling: str, tmp_path: Path) -> None:
    keys = make_keys("eurobert")
    expected = read(tmp_path, keys | {"classifier_pooling": pooling})
    del keys["classifier_pooling"]
    assert read(tmp_path, keys | {"clf_pooling": pooling}) == expected


def test_code_is_not_needed_where_the_family_is_known(tmp_path: Path) -> None:
    own_code = {"auto_map": {"AutoModel": "modeling_eurobert.EuroBertModel"}}
    assert read(tmp_path, make_keys("eurobert")) == read(tmp_path, make_keys("eurobert") | own_code)
    with pytest.raises(ModelDirectoryError, match="auto_map says that the model brings its own code"):
        read(tmp_path, make_keys("modernbert") | own_code)


def test_nomic_bert_ends_where_its_positions_would_be_stretched(tmp_path: Path) -> None:
    keys = make_keys("nomic_bert") | {"max_position_embeddings": 8192, "max_trained_positions": 2048}
    assert read(tmp_path, keys)[1].max_input_tokens == 8192
    assert read(tmp_path, keys | {"rotary_scaling_factor": 2.0})[1].max_input_tokens == 2048


def test_nomic_bert_under_the_keys_of_its_own_code(tmp_path: Path) -> None:
    """As in the published file: none of transformers' names of sizes is in it."""
    keys = make_keys("nomic_bert") | {"layer_norm_eps": 1e-6, "rope_theta": 500.0}
    own = {other: keys[name] for other, name in OTHER_NAMES["nomic_bert"].items() if name in keys}
    rest = {name: value for name, value in keys.items() if name not in OTHER_NAMES["nomic_bert"].values()}
    settings = {name: values[0] for name, values in NOMIC_BERT.items() if values}
    code = {"auto_map": {"AutoModel": "another/place--modeling_hf_nomic_bert.NomicBertModel"}}
    assert read(tmp_path, rest | own | settings | code | {"rotary_scaling_factor": None}) == read(tmp_path, keys)


def test_new_is_gte(tmp_path: Path) -> None:
    """Under the keys that published files have."""
    keys = make_keys("gte") | {"rope_theta": 500.0}
    own = {
        "auto_map": {"AutoModel": "another/place--modeling.NewModel"},
        "layer_norm_type": "layer_norm",
        "logn_attention_clip1": False,
        "logn_attention_scale": False,
        "pack_qkv": True,
        "position_embedding_type": "rope",
        "unpad_inputs": "true",
    }
    expected, _ = read(tmp_path, keys)
    found, _ = read(tmp_path, keys | own | {"model_type": "new", "architectures": ["NewForMaskedLM"]})
    assert replace(found, model_type="gte", architecture="GteForMaskedLM") == expected


def test_ntk_scaling_of_gte(tmp_path: Path) -> None:
    """By the formula of its own code: theta times the factor, and frequencies divided by factor^(2 / dim)."""
    config, _ = read(tmp_path, make_keys("gte") | {"rope_theta": 20000.0, "rope_scaling": {"type": "ntk", "factor": 8}})
    assert config.rotary is not None
    dim = config.rotary.head_dim
    frequencies = (20000.0 * 8) ** (-torch.arange(0, dim, 2).double() / dim) / 8 ** (2 / dim)
    table = build_table(config.rotary.rotaries[0], 50)
    angles = torch.arange(50).double()[:, None] * frequencies
    torch.testing.assert_close(table.double(), torch.cat([angles.cos(), angles.sin()], dim=1), rtol=0, atol=1e-5)
