"""Every key of config.json of encoder-decoders is read, without meaning here, or refused by its name."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from tiny_seq2seq import CONFIGS

from models.info import ModelDirectoryError, ModelInfo, read_info
from models.seq2seq_config import Seq2SeqConfig, read_seq2seq_config

TRAINING = {
    *("activation_dropout", "attention_dropout", "classifier_dropout", "dropout", "dropout_rate"),
    *("encoder_layerdrop", "decoder_layerdrop", "init_std", "initializer_factor"),
    *("apply_spec_augment", "mask_feature_length", "mask_feature_min_masks", "mask_feature_prob"),
    *("mask_time_length", "mask_time_min_masks", "mask_time_prob"),
}
OTHER_HEADS = {"classifier_proj_size", "use_weighted_layer_sum"}
"""Of Whisper that sorts sounds."""
ELSEWHERE = {
    *("bos_token_id", "decoder_start_token_id", "eos_token_id", "forced_eos_token_id"),
    *("begin_suppress_tokens", "suppress_tokens"),
}
"""How answers begin and end: test_seq2seq_info."""
COMPUTED = {"dense_act_fn", "is_decoder", "is_gated_act", "scale_decoder_outputs", "use_cache"}
"""What transformers writes down of other keys, or has no meaning in a whole model; the fourth is below."""
WITHOUT_MEANING = TRAINING | OTHER_HEADS | ELSEWHERE | COMPUTED | set(transformers.PreTrainedConfig().to_dict())

BART: dict[str, Any] = {
    "vocab_size": 102,
    "d_model": 64,
    "encoder_layers": 5,
    "decoder_layers": 5,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "activation_function": "tanh",
    "pad_token_id": 5,
    "scale_embedding": None,  # the other one
    "tie_word_embeddings": None,
}
WRITTEN = BART | {"max_position_embeddings": 90}
T5: dict[str, Any] = {
    "vocab_size": 102,
    "d_model": 64,
    "d_kv": 14,
    "d_ff": 20,
    "num_layers": 5,
    "num_decoder_layers": 5,
    "num_heads": 8,
    "relative_attention_num_buckets": 10,
    "relative_attention_max_distance": 30,
    "layer_norm_epsilon": 1e-3,
    "feed_forward_proj": "gated-relu",
    "pad_token_id": 5,
}
OTHER_VALUES: dict[str, dict[str, Any]] = {
    "bart": WRITTEN,
    "m2m_100": WRITTEN,
    "marian": WRITTEN,
    "marian-two-vocabularies": {"decoder_vocab_size": 80, "share_encoder_decoder_embeddings": True},
    "mbart": WRITTEN,
    "mt5": T5,
    "pegasus": WRITTEN,
    "t5": T5 | {"tie_word_embeddings": False, "scale_decoder_outputs": False},
    "umt5": T5 | {"tie_word_embeddings": False, "scale_decoder_outputs": False},
    "whisper": {key: value for key, value in BART.items() if key != "scale_embedding"}
    | {"num_mel_bins": 12, "max_source_positions": 30, "max_target_positions": 30, "median_filter_width": 5},
}
WITHOUT_EFFECT: dict[str, dict[str, Any]] = {
    "whisper": {"scale_embedding": True},
    "mt5": {"tie_word_embeddings": False},
    "t5": {"n_positions": 12},
}
"""What transformers reads and does not follow."""
BOTH: dict[str, Any] = {"is_decoder": True, "tie_encoder_decoder": True, "quantization_config": {"bits": 4}}
BART_REFUSED = BOTH | {"is_encoder_decoder": False, "encoder_attention_heads": 5, "decoder_attention_heads": 5}
T5_REFUSED = BOTH | {
    "feed_forward_proj": "gated-mish",
    "relative_attention_num_buckets": 3,
    "relative_attention_max_distance": 4,
}
REFUSED: dict[str, dict[str, Any]] = {
    "bart": BART_REFUSED | {"normalize_before": True, "normalize_embedding": False, "static_position_embeddings": True},
    "m2m_100": BART_REFUSED,
    "marian": BART_REFUSED | {"add_final_layer_norm": True, "normalize_embedding": True},
    "mbart": BART_REFUSED | {"normalize_before": False},
    "mt5": T5_REFUSED,
    "pegasus": BART_REFUSED | {"static_position_embeddings": False},
    "t5": T5_REFUSED,
    "umt5": T5_REFUSED,
    "whisper": BART_REFUSED,
}


def list_cases(values: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    return [(name, key) for name, keys in values.items() for key in keys]


def read(directory: Path, keys: dict[str, Any]) -> tuple[Seq2SeqConfig, ModelInfo]:
    (directory / "config.json").write_text(json.dumps(keys), encoding="utf-8")
    return read_seq2seq_config(directory), read_info(directory)


def make_keys(name: str) -> dict[str, Any]:
    """As transformers writes them, without what it adds to keys of the same meaning."""
    config = CONFIGS[name]()
    keys: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    keys.pop("scale_decoder_outputs", None)
    ending = "MTModel" if name.startswith("marian") else "ForConditionalGeneration"
    return keys | {"architectures": [type(config).__name__.replace("Config", ending)]}


@pytest.mark.parametrize("name", [name for name in OTHER_VALUES if "-" not in name])
def test_every_key_is_accounted_for(name: str) -> None:
    told = set[str]().union(*(OTHER_VALUES[each] for each in OTHER_VALUES if each.partition("-")[0] == name))
    keys = type(CONFIGS[name]())().to_dict().keys() - {"model_type"}
    assert not keys - WITHOUT_MEANING - told - WITHOUT_EFFECT.get(name, {}).keys()


@pytest.mark.parametrize(("name", "key"), list_cases(OTHER_VALUES))
def test_keys_are_read(name: str, key: str, tmp_path: Path) -> None:
    keys, other = make_keys(name), OTHER_VALUES[name][key]
    other = not keys[key] if other is None else other
    assert read(tmp_path, keys) != read(tmp_path, keys | {key: other})


@pytest.mark.parametrize(("name", "key"), list_cases(REFUSED))
def test_keys_are_refused(name: str, key: str, tmp_path: Path) -> None:
    words = {"feed_forward_proj": "activation 'mish'"}.get(key, key)
    with pytest.raises(ModelDirectoryError, match=rf"config\.json: .*{words}"):
        read(tmp_path, make_keys(name) | {key: REFUSED[name][key]})


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_keys_without_meaning_change_nothing(name: str, tmp_path: Path) -> None:
    others = dict.fromkeys(TRAINING | OTHER_HEADS, 0.25) | {"use_cache": False, "hidden_size": 7, "head_dim": 7}
    expected = read(tmp_path, make_keys(name))
    assert read(tmp_path, make_keys(name) | others | WITHOUT_EFFECT.get(name, {})) == expected


@pytest.mark.parametrize("name", [name for name in CONFIGS if "-" not in name])
def test_defaults_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """A config.json that says no more than it must."""
    theirs = type(CONFIGS[name]())()
    sizes = {
        *("vocab_size", "d_model", "d_ff", "num_layers", "num_heads", "encoder_layers", "decoder_layers"),
        *("encoder_attention_heads", "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim"),
    }
    keys = make_keys(name)
    whole = {**keys, **json.loads(theirs.to_json_string(use_diff=False)), "decoder_start_token_id": 0}
    whole.pop("scale_decoder_outputs", None)
    named = {key: whole[key] for key in ("architectures", "model_type", "decoder_start_token_id")}
    config, info = read(tmp_path, whole)
    least, little = read(tmp_path, named | {key: whole[key] for key in sizes if key in whole})
    assert least == config
    assert (little.max_input_tokens, little.output_dim) == (info.max_input_tokens, info.output_dim)


def test_feed_forward_of_t5(tmp_path: Path) -> None:
    """The first gated ones say gelu and mean the other; without a gate it is what it says."""
    expected = {
        "relu": ("relu", False),
        "gelu": ("gelu", False),
        "gated-gelu": ("gelu_tanh", True),
        "gated-silu": ("silu", True),
        "gated-gelu_new": ("gelu_tanh", True),
    }
    for given, found in expected.items():
        config, _ = read(tmp_path, make_keys("t5") | {"feed_forward_proj": given})
        assert (config.activation, config.is_gated) == found
    with pytest.raises(ModelDirectoryError, match="unknown activation 'open-gelu'"):
        read(tmp_path, make_keys("t5") | {"feed_forward_proj": "open-gelu"})


def test_scale_of_t5s_logits(tmp_path: Path) -> None:
    """Old files say it by tie_word_embeddings; newer ones say that all is tied, and have a key for the scale."""
    scale = 32**-0.5
    for given, expected in (
        ({}, scale),
        ({"tie_word_embeddings": False}, 1.0),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, 1.0),
        ({"tie_word_embeddings": False, "scale_decoder_outputs": True}, scale),
    ):
        config, _ = read(tmp_path, make_keys("t5") | given)
        assert (config.logit_scale, config.is_tied) == (expected, True)
    assert read(tmp_path, make_keys("mt5"))[0].logit_scale == 1


def test_old_name_of_t5(tmp_path: Path) -> None:
    keys = make_keys("t5")
    assert read(tmp_path, keys | {"architectures": ["T5WithLMHeadModel"]}) == read(tmp_path, keys)
