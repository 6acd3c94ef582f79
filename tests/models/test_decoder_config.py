"""What decoders' config.json may say, what it may leave out, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from tiny_decoders import CONFIGS, GPT2_SIZES, SIZES

from models.decoder_config import read_decoder_config
from models.defaults import OTHER_NAMES
from models.info import ModelDirectoryError, read_info
from models.registry import DECODERS, find_decoder

LLAMA = SIZES | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
GPT2 = GPT2_SIZES | {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
GEMMA = LLAMA | {"architectures": ["GemmaForCausalLM"], "model_type": "gemma"}
GEMMA2 = LLAMA | {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"}
YARN = {"rope_type": "yarn", "factor": 4.0}
LONGROPE = {"rope_type": "longrope", "short_factor": [1] * 4, "long_factor": [1] * 4}


def write(directory: Path, keys: dict[str, Any]) -> Path:
    path = directory / "config.json"
    path.write_text(json.dumps(keys), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", sorted({name for family in DECODERS.values() for name in family.model_types}))
def test_defaults_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    """A config.json that says no more than it must."""
    base = CONFIGS[name]()
    architecture = type(base).__name__.replace("Config", "LMHeadModel" if name == "gpt2" else "ForCausalLM")
    renamed = {new: old for old, new in OTHER_NAMES.get(base.model_type, {}).items()}
    least = {"vocab_size": 64, "num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 32}
    if base.model_type != "gpt2":
        least |= {"intermediate_size": 48}
    least = {renamed.get(key, key): value for key, value in least.items()}
    keys = {"architectures": [architecture], "model_type": base.model_type}
    write(tmp_path, keys | least)
    ours, theirs = read_decoder_config(tmp_path), type(base)(**least)
    assert find_decoder(architecture, ours.model_type).model_types.count(ours.model_type) == 1
    assert ours.max_position_embeddings == theirs.max_position_embeddings == read_info(tmp_path).max_input_tokens
    assert ours.norm_eps == getattr(theirs, "rms_norm_eps", 1e-5)
    assert ours.num_kv_heads == getattr(theirs, "num_key_value_heads", 1 if name == "falcon" else 32)
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 8)
    assert ours.is_tied == theirs.tie_word_embeddings
    assert ours.intermediate_size == getattr(theirs, "intermediate_size", 1024 if name == "gpt2" else 48)
    # The same with every default written out.
    theirs.architectures = [architecture]
    theirs.save_pretrained(tmp_path)
    assert read_decoder_config(tmp_path) == ours


def test_null_and_absent_differ(tmp_path: Path) -> None:
    """No window, as many heads of keys as of queries, heads as wide as they must be: not the type's defaults."""
    nulls = {"sliding_window": None, "num_key_value_heads": None, "head_dim": None}
    write(tmp_path, MISTRAL | nulls)
    config = read_decoder_config(tmp_path)
    assert (config.windows, config.num_kv_heads, config.head_dim) == ((-1,) * 3, 4, 8)
    write(tmp_path, {key: value for key, value in MISTRAL.items() if key != "num_key_value_heads"} | {"head_dim": 6})
    with pytest.raises(ModelDirectoryError, match="num_attention_heads 4 is no multiple of num_key_value_heads 8"):
        read_decoder_config(tmp_path)
    write(tmp_path, GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None})
    config = read_decoder_config(tmp_path)
    assert (config.attention_softcap, config.logit_softcap, config.head_dim) == (0, 0, 256)


@pytest.mark.parametrize(
    ("keys", "windows"),
    [
        (MISTRAL, (4095,) * 3),
        (MISTRAL | {"sliding_window": 7}, (6,) * 3),
        (LLAMA | {"sliding_window": 7}, (-1,) * 3),
        (QWEN2 | {"sliding_window": 7}, (-1,) * 3),
        (QWEN2 | {"sliding_window": 7, "use_sliding_window": True}, (-1,) * 3),
        (QWEN2 | {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1}, (-1, 6, 6)),
        (QWEN2 | {"sliding_window": None, "use_sliding_window": True, "max_window_layers": 1}, (-1,) * 3),
        (
            QWEN2
            | {
                "sliding_window": 7,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            (6, -1, 6),
        ),
        (QWEN2 | {"layer_types": ["full_attention"] * 3}, (-1,) * 3),
        (GEMMA2, (4095, -1, 4095)),
    ],
)
def test_windows(tmp_path: Path, keys: dict[str, Any], windows: tuple[int, ...]) -> None:
    write(tmp_path, keys)
    assert read_decoder_config(tmp_path).windows == windows


def test_gemma_has_always_had_one_gate(tmp_path: Path) -> None:
    """The first checkpoints say gelu in one of two places."""
    published: list[dict[str, Any]] = [
        {"hidden_act": "gelu", "hidden_activation": None},
        {"hidden_activation": "gelu_pytorch_tanh"},
    ]
    for activation in published:
        write(tmp_path, GEMMA | activation)
        assert read_decoder_config(tmp_path).activation == "gelu_tanh"


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "cross attention": (GPT2 | {"add_cross_attention": True}, "add_cross_attention True is not supported; only False"),
    "quantised": (LLAMA | {"quantization_config": {"bits": 4}}, "quantization_config .* use a checkpoint without it"),
    "own code": (LLAMA | {"auto_map": {"AutoModelForCausalLM": "code.Model"}}, "brings its own code"),
    "no width": ({**LLAMA, "hidden_size": None}, "the key 'hidden_size' is missing"),
    "no inner width": ({**LLAMA, "intermediate_size": None}, "the key 'intermediate_size' is missing"),
    "activation": (LLAMA | {"hidden_act": "mish"}, "unknown activation 'mish'"),
    "gate": (GEMMA | {"hidden_activation": "relu"}, "hidden_activation 'relu' is not supported"),
    "bidirectional": (GEMMA | {"use_bidirectional_attention": True}, "use_bidirectional_attention True is not"),
    "heads": (
        LLAMA | {"num_attention_heads": 5, "num_key_value_heads": 5},
        "no multiple of num_attention_heads 5; set",
    ),
    "groups": (LLAMA | {"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
    "odd heads": (LLAMA | {"head_dim": 7}, "head_dim 7 is odd"),
    "types of layers": (MISTRAL | {"layer_types": ["full_attention"] * 3}, "layer_types .* a checkpoint without it"),
    "too few layers": (QWEN2 | {"layer_types": ["full_attention"]}, "layer_types must be 3 times full_attention or"),
    "unknown layers": (QWEN2 | {"layer_types": ["chunked_attention"] * 3}, "layer_types must be .* but is .*chunked"),
    "layers of layers": (QWEN2 | {"layer_types": [["full_attention"]] * 3}, "layer_types must be"),
    "layers in words": (QWEN2 | {"layer_types": "full"}, "layer_types must be .* but is 'full'"),
    "no window": (QWEN2 | {"layer_types": ["sliding_attention"] * 3}, "no sliding_window is set or used; set one"),
    "window": (MISTRAL | {"sliding_window": 0}, "sliding_window is 0; it must be a whole number of at least 1"),
    "softcap": (
        GEMMA2 | {"attn_logit_softcapping": -1.0},
        "attn_logit_softcapping is -1.0; it must be a number over 0",
    ),
    "theta": (LLAMA | {"rope_theta": "many"}, "rope_theta is 'many'; it must be a number over 0"),
    "half turned": (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported; only 1"),
    "half turned inside": (
        LLAMA | {"rope_parameters": {"partial_rotary_factor": 0.5}},
        "rope_parameters: partial_rotary_factor 0.5 is not supported; only 1 is",
    ),
    "scaling": (
        LLAMA | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}},
        "rope_scaling of the type 'mrope' is not supported; supported are default, dynamic, linear",
    ),
    "by layer": (
        QWEN2 | {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
        "rope_parameters must be one set of settings for all layers",
    ),
    "no factor": (LLAMA | {"rope_scaling": {"type": "linear"}}, "the key 'factor' is missing"),
    "factor": (LLAMA | {"rope_scaling": {"type": "linear", "factor": -2}}, "factor is -2; it must be a number over 0"),
    "dynamic": (
        LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 40}},
        "only served up to their original length; set max_position_embeddings to 40",
    ),
    "llama3": (
        LLAMA | {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}},
        "low_freq_factor 4.0 must be below high_freq_factor 4.0",
    ),
    "yarn": (LLAMA | {"rope_scaling": YARN | {"beta_fast": True}}, "beta_fast is True; it must be a number"),
    "yarn's scale": (LLAMA | {"rope_scaling": YARN | {"mscale": "a"}}, "mscale is 'a'; it must be a number over 0"),
    "longrope": (
        LLAMA | {"rope_scaling": LONGROPE | {"long_factor": [1.0, 2.0, 3.0]}},
        r"long_factor must be 4 numbers over 0, but is \[1\.0, 2\.0, 3\.0\]",
    ),
    "longrope in words": (LLAMA | {"rope_scaling": LONGROPE | {"short_factor": ["a"] * 4}}, "short_factor must be 4"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_configs_that_are_refused(tmp_path: Path, name: str) -> None:
    keys, message = BAD_CONFIGS[name]
    path = write(tmp_path, keys)
    with pytest.raises(ModelDirectoryError, match=message) as caught:
        read_decoder_config(tmp_path)
    assert str(caught.value).startswith(str(path))


def test_unknown_architecture() -> None:
    with pytest.raises(
        ModelDirectoryError, match=r"'OPTForCausalLM' cannot generate\. Those that can are Cohere, Cohere2, Falcon"
    ):
        find_decoder("OPTForCausalLM", "opt")
    with pytest.raises(ModelDirectoryError, match="contradicts model_type 'qwen2'; it goes with llama, mistral"):
        find_decoder("LlamaForCausalLM", "qwen2")


def test_settings_without_effect_are_accepted(tmp_path: Path) -> None:
    """As in published files."""
    write(tmp_path, LLAMA | {"pretraining_tp": 2, "use_cache": False, "is_decoder": True, "rope_scaling": None})
    plain = read_decoder_config(tmp_path)
    write(tmp_path, LLAMA | {"rope_scaling": {"type": "default"}, "layer_types": None, "attention_dropout": 0.5})
    assert read_decoder_config(tmp_path) == plain
    assert isinstance(CONFIGS["llama"](), transformers.LlamaConfig)
