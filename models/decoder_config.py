"""HF's config.json to one frozen description of a decoder. The only reader of HF's keys for decoders."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from models.config import check_supported, read_activation
from models.defaults import Keys
from models.keys import ModelDirectoryError, read_architecture, read_keys, require_number
from models.rotary import FREQUENCIES, RotaryConfig, longrope_attention_factor, yarn_attention_factor

LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A causal language model, in our names. All layers are pre-norm."""

    architecture: str
    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    activation: str
    norm_eps: float
    max_position_embeddings: int
    rotary: RotaryConfig | None
    """None: positions are learned rows."""
    windows: tuple[int, ...]
    """Of each layer: how many keys behind itself a token sees; -1 for all."""
    softmax_scales: tuple[float, ...]
    """Of each layer."""
    has_rms_norm: bool
    """Else LayerNorm."""
    has_post_norms: bool
    """What attention and feed-forward give is normalised too, before it is added (Gemma 2)."""
    has_qk_norm: bool
    is_gated: bool
    """The feed-forward block is act(gate) * up instead of act(up)."""
    has_qkv_bias: bool
    has_o_bias: bool
    has_mlp_bias: bool
    is_tied: bool
    """The table of embeddings is the language model's head too."""
    is_causal: bool
    """A token sees those before it and itself; else all of its text, which only those that read can do."""
    attention_softcap: float
    """0 for none, as below."""
    logit_softcap: float


def read_decoder_config(directory: Path) -> DecoderConfig:
    """Raises ModelDirectoryError where a key is missing or its value is one we do not know."""
    path = directory / "config.json"
    keys = read_keys(directory)
    check_supported(path, keys)
    hidden_size, num_layers = (require_number(path, keys, name) for name in ("hidden_size", "num_hidden_layers"))
    num_heads, num_kv_heads, head_dim = read_heads(path, keys, hidden_size)
    model_type = keys["model_type"]
    is_gpt2 = model_type == "gpt2"
    has_bias = bool(keys.get("attention_bias"))
    return DecoderConfig(
        architecture=read_architecture(keys),
        model_type=model_type,
        vocab_size=require_number(path, keys, "vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=read_intermediate_size(path, keys, hidden_size),
        activation="gelu_tanh" if model_type.startswith("gemma") else read_activation(path, keys["hidden_act"]),
        norm_eps=float(keys["layer_norm_eps"]),
        max_position_embeddings=require_number(path, keys, "max_position_embeddings"),
        rotary=None if is_gpt2 else read_rotary(path, keys, head_dim),
        windows=read_windows(path, keys, num_layers),
        softmax_scales=read_softmax_scales(path, keys, head_dim, num_layers),
        has_rms_norm=not is_gpt2,
        has_post_norms=model_type == "gemma2",
        has_qk_norm=model_type == "qwen3",
        is_gated=not is_gpt2,
        has_qkv_bias=has_bias or model_type == "qwen2",
        has_o_bias=has_bias,
        has_mlp_bias=bool(keys.get("mlp_bias")),
        is_tied=bool(keys["tie_word_embeddings"]),
        is_causal=not keys.get("use_bidirectional_attention") and keys.get("is_causal") is not False,
        attention_softcap=read_softcap(path, keys, "attn_logit_softcapping"),
        logit_softcap=read_softcap(path, keys, "final_logit_softcapping"),
    )


def read_heads(path: Path, keys: Keys, hidden_size: int) -> tuple[int, int, int]:
    """Of queries, of keys and values, and the width of one."""
    num_heads = require_number(path, keys, "num_attention_heads")
    num_kv_heads = num_heads
    if keys.get("num_key_value_heads") is not None:
        num_kv_heads = require_number(path, keys, "num_key_value_heads")
    if num_heads % num_kv_heads:
        raise ModelDirectoryError(
            f"{path}: num_attention_heads {num_heads} is no multiple of num_key_value_heads {num_kv_heads}"
        )
    if keys.get("head_dim") is not None:
        return num_heads, num_kv_heads, require_number(path, keys, "head_dim")
    if hidden_size % num_heads:
        raise ModelDirectoryError(
            f"{path}: hidden_size {hidden_size} is no multiple of num_attention_heads {num_heads}; set head_dim"
        )
    return num_heads, num_kv_heads, hidden_size // num_heads


def read_intermediate_size(path: Path, keys: Keys, hidden_size: int) -> int:
    """GPT-2 may leave it out."""
    if keys["model_type"] == "gpt2" and "intermediate_size" not in keys:
        return 4 * hidden_size
    return require_number(path, keys, "intermediate_size")


def read_windows(path: Path, keys: Keys, num_layers: int) -> tuple[int, ...]:
    """HF counts a token among those it sees, so its window is one more than ours."""
    layer_types = read_layer_types(path, keys, num_layers)
    if "sliding_attention" not in layer_types:
        return (-1,) * num_layers
    window = require_number(path, keys, "sliding_window") - 1
    return tuple(window if kind == "sliding_attention" else -1 for kind in layer_types)


def read_layer_types(path: Path, keys: Keys, num_layers: int) -> tuple[str, ...]:
    """One of LAYER_TYPES for each layer."""
    model_type = keys["model_type"]
    has_window = keys.get("sliding_window") is not None
    if model_type in ("qwen2", "qwen3"):
        has_window = has_window and bool(keys["use_sliding_window"])
    elif model_type not in ("gemma2", "mistral"):
        return ("full_attention",) * num_layers
    if "layer_types" in keys:
        layer_types = keys["layer_types"]
        is_known = isinstance(layer_types, list) and all(kind in LAYER_TYPES for kind in layer_types)
        if not is_known or len(layer_types) != num_layers:
            known = " or ".join(LAYER_TYPES)
            raise ModelDirectoryError(f"{path}: layer_types must be {num_layers} times {known}, but is {layer_types!r}")
        if "sliding_attention" in layer_types and not has_window:
            raise ModelDirectoryError(
                f"{path}: layer_types has sliding_attention, but no sliding_window is set or used; set one"
            )
        return tuple(layer_types)
    if model_type == "gemma2":
        slides = [has_window and layer % 2 == 0 for layer in range(num_layers)]
    else:
        first = require_number(path, keys, "max_window_layers", least=0) if "max_window_layers" in keys else 0
        slides = [has_window and layer >= first for layer in range(num_layers)]
    return tuple("sliding_attention" if slide else "full_attention" for slide in slides)


def read_softmax_scales(path: Path, keys: Keys, head_dim: int, num_layers: int) -> tuple[float, ...]:
    width = require_number(path, keys, "query_pre_attn_scalar") if keys["model_type"] == "gemma2" else head_dim
    if keys["model_type"] != "gpt2":
        return (float(width) ** -0.5,) * num_layers
    softmax_scale = float(width) ** -0.5 if keys.get("scale_attn_weights", True) else 1.0
    by_layer = bool(keys.get("scale_attn_by_inverse_layer_idx"))
    return tuple(softmax_scale / (layer + 1 if by_layer else 1) for layer in range(num_layers))


def read_softcap(path: Path, keys: Keys, name: str) -> float:
    if keys["model_type"] != "gemma2" or keys.get(name) is None:
        return 0.0
    return require_positive(path, keys, name)


def read_rotary(path: Path, keys: Keys, head_dim: int) -> RotaryConfig:
    """From `rope_parameters`, or from `rope_theta` and `rope_scaling` as before transformers 5."""
    name = "rope_scaling" if keys.get("rope_scaling") else "rope_parameters"
    given = keys.get(name) or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise ModelDirectoryError(f"{path}: {name} must be one set of settings for all layers, but is {given!r}")
    given = {"rope_theta": keys["rope_theta"]} | {key: value for key, value in given.items() if value is not None}
    # transformers lets the key outside win where both are there.
    if "original_max_position_embeddings" in keys:
        given["original_max_position_embeddings"] = keys["original_max_position_embeddings"]
    scaling = str(given.get("rope_type", given.get("type", "default")))
    if scaling not in FREQUENCIES:
        raise ModelDirectoryError(
            f"{path}: {name} of the type {scaling!r} is not supported; supported are {', '.join(FREQUENCIES)}"
        )
    if given.get("partial_rotary_factor", 1) != 1:
        partial = given["partial_rotary_factor"]
        raise ModelDirectoryError(f"{path}: {name}: partial_rotary_factor {partial!r} is not supported; only 1 is")
    if head_dim % 2:
        raise ModelDirectoryError(f"{path}: head_dim {head_dim} is odd, but positions turn pairs of its elements")
    max_positions = require_number(path, keys, "max_position_embeddings")
    plain = RotaryConfig(head_dim, require_positive(path, given, "rope_theta"), scaling)
    return add_scaling(path, given, max_positions, plain)


def add_scaling(path: Path, given: Keys, max_positions: int, plain: RotaryConfig) -> RotaryConfig:
    """The numbers that the scaling needs, from `given`, which is what config.json says of positions."""
    scaling = plain.scaling
    if scaling == "default":
        return plain
    given = {"original_max_position_embeddings": max_positions} | given
    original = require_number(path, given, "original_max_position_embeddings")
    if scaling in ("yarn", "longrope"):
        given = {"factor": max_positions / original} | given
    factor = require_positive(path, given, "factor")
    if scaling == "linear":
        return replace(plain, factor=factor)
    if scaling == "dynamic":
        if max_positions != original:
            raise ModelDirectoryError(
                f"{path}: rotary positions of the type 'dynamic' are only served up to their original length; "
                f"set max_position_embeddings to {original}"
            )
        return plain
    scaled = replace(plain, factor=factor, original_max_positions=original)
    return {"llama3": add_llama3, "longrope": add_longrope, "yarn": add_yarn}[scaling](path, given, scaled)


def add_llama3(path: Path, given: Keys, config: RotaryConfig) -> RotaryConfig:
    low, high = (require_positive(path, given, f"{name}_freq_factor") for name in ("low", "high"))
    if low >= high:
        raise ModelDirectoryError(f"{path}: low_freq_factor {low} must be below high_freq_factor {high}")
    return replace(config, low_freq_factor=low, high_freq_factor=high)


def add_yarn(path: Path, given: Keys, config: RotaryConfig) -> RotaryConfig:
    given = {"beta_fast": 32, "beta_slow": 1} | given
    scales = [require_positive(path, given, name) for name in ("mscale", "mscale_all_dim") if given.get(name)]
    given = {"attention_factor": yarn_attention_factor(config.factor, scales)} | given
    return replace(
        config,
        beta_fast=require_positive(path, given, "beta_fast"),
        beta_slow=require_positive(path, given, "beta_slow"),
        is_truncated=bool(given.get("truncate", True)),
        attention_factor=require_positive(path, given, "attention_factor"),
    )


def add_longrope(path: Path, given: Keys, config: RotaryConfig) -> RotaryConfig:
    given = {"attention_factor": longrope_attention_factor(config.factor, config.original_max_positions)} | given
    short, long = (read_factors(path, given, name, config.dim // 2) for name in ("short_factor", "long_factor"))
    attention_factor = require_positive(path, given, "attention_factor")
    return replace(config, short_factors=short, long_factors=long, attention_factor=attention_factor)


def read_factors(path: Path, given: Keys, name: str, count: int) -> tuple[float, ...]:
    factors = given.get(name)
    if not isinstance(factors, list) or len(factors) != count or not all(map(is_positive, factors)):
        raise ModelDirectoryError(f"{path}: {name} must be {count} numbers over 0, but is {factors!r}")
    return tuple(map(float, factors))


def require_positive(path: Path, keys: Keys, name: str) -> float:
    """Raises ModelDirectoryError naming the key."""
    if name not in keys:
        raise ModelDirectoryError(f"{path}: the key {name!r} is missing")
    if not is_positive(keys[name]):
        raise ModelDirectoryError(f"{path}: {name} is {keys[name]!r}; it must be a number over 0")
    return float(keys[name])


def is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
