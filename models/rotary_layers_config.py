"""What config.json says of the layers of encoders with rotary positions."""

from dataclasses import dataclass
from pathlib import Path

from models.defaults import FLASH, Keys
from models.keys import ModelDirectoryError, require_number
from models.rotary import RotaryConfig
from models.rotary_config import build_rotary, read_heads, read_rotary, require_positive

FULL, SLIDING = "full_attention", "sliding_attention"
THETAS = {FULL: "global_rope_theta", SLIDING: "local_rope_theta"}
"""ModernBERT's keys before transformers 5."""


@dataclass(frozen=True, slots=True)
class RotaryLayersConfig:
    """What these layers have beside that of `EncoderConfig`. The first two are of each layer."""

    rotaries: tuple[RotaryConfig, ...]
    windows: tuple[int, ...]
    """How many keys to each side of itself a token sees; -1 for all."""
    num_kv_heads: int
    head_dim: int
    has_attention_bias: bool
    is_gated: bool
    """The feed-forward block is down(act(gate) * up) instead of down(act(up))."""
    has_gate_bias: bool
    """Of the feed-forward block's gate and of what it lets through."""
    has_down_bias: bool
    has_norm_bias: bool


def read_rotary_layers(path: Path, keys: Keys, num_layers: int) -> RotaryLayersConfig:
    """Raises ModelDirectoryError."""
    _, num_kv_heads, head_dim = read_heads(path, keys, require_number(path, keys, "hidden_size"))
    is_gte, is_nomic = keys["model_type"] in ("gte", "new"), keys["model_type"] == "nomic_bert"
    has_gate_bias, has_down_bias = (
        bool(keys[name]) for name in (("mlp_fc1_bias", "mlp_fc2_bias") if is_nomic else ("mlp_bias", "mlp_bias"))
    )
    is_jina = keys["model_type"] in ("jina_embeddings_v3", FLASH)
    is_gated = not is_jina and (not is_nomic or keys.get("activation_function") != "gelu")
    if not is_gated and not (has_gate_bias and has_down_bias):
        raise ModelDirectoryError(
            f"{path}: activation_function gelu needs mlp_fc1_bias and mlp_fc2_bias; use a checkpoint that has both"
        )
    if keys["model_type"] == "modernbert":
        rotaries, windows = read_alternating(path, keys, head_dim, num_layers)
    else:
        rotary = read_rotary(path, resolve_ntk(path, keys, head_dim) if is_gte else keys, head_dim)
        rotaries, windows = (rotary,) * num_layers, (-1,) * num_layers
    if any(rotary.scaling == "longrope" for rotary in rotaries):
        raise ModelDirectoryError(
            f"{path}: rotary positions of the type 'longrope' depend on the length of each text, and are not supported "
            "in encoders"
        )
    return RotaryLayersConfig(
        rotaries=rotaries,
        windows=windows,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        has_attention_bias=bool(keys["attention_bias"]),
        is_gated=is_gated,
        has_gate_bias=has_gate_bias,
        has_down_bias=has_down_bias or is_gte,
        has_norm_bias=bool(keys.get("norm_bias", True)),
    )


def resolve_ntk(path: Path, keys: Keys, head_dim: int) -> Keys:
    """GTE's fixed NTK scaling as what it equals: positions divided by factor^(2 / head_dim), and theta times factor."""
    scaling = keys.get("rope_scaling")
    if not isinstance(scaling, dict) or "ntk" not in (scaling.get("type"), scaling.get("rope_type")):
        return keys
    if scaling.get("mixed_b") is not None:
        raise ModelDirectoryError(f"{path}: rope_scaling: mixed_b {scaling['mixed_b']!r} is not supported")
    factor, theta = require_positive(path, scaling, "factor"), require_positive(path, keys, "rope_theta")
    linear = {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / head_dim)}
    return keys | {"rope_scaling": linear}


def read_alternating(
    path: Path, keys: Keys, head_dim: int, num_layers: int
) -> tuple[tuple[RotaryConfig, ...], tuple[int, ...]]:
    """Layers that see everything and layers that see a window, each kind with rotary positions of its own."""
    layer_types = read_layer_types(path, keys, num_layers)
    rotaries = {kind: read_rotary_of(path, keys, kind, head_dim) for kind in sorted(set(layer_types))}
    reach = require_number(path, keys, "local_attention") // 2
    windows = tuple(reach if kind == SLIDING else -1 for kind in layer_types)
    return tuple(rotaries[kind] for kind in layer_types), windows


def read_layer_types(path: Path, keys: Keys, num_layers: int) -> list[str]:
    """FULL or SLIDING for each layer; without them every n-th is full, from the first on."""
    if "layer_types" not in keys:
        every = require_number(path, keys, "global_attn_every_n_layers")
        return [SLIDING if layer % every else FULL for layer in range(num_layers)]
    found = keys["layer_types"]
    if not isinstance(found, list) or len(found) != num_layers or not all(kind in THETAS for kind in found):
        raise ModelDirectoryError(
            f"{path}: layer_types must be {num_layers} times {FULL} or {SLIDING}, but is {found!r}"
        )
    return found


def read_rotary_of(path: Path, keys: Keys, kind: str, head_dim: int) -> RotaryConfig:
    """Of one kind of layers: `rope_parameters` have a set for each, a `rope_scaling` of older files is for both."""
    sets, scaling = keys.get("rope_parameters") or {}, keys.get("rope_scaling") or {}
    is_nested = isinstance(sets, dict) and all(
        name in THETAS and isinstance(value, dict | None) for name, value in sets.items()
    )
    if not is_nested:
        raise ModelDirectoryError(
            f"{path}: rope_parameters must hold a set of settings for each of {FULL} and {SLIDING}, but is {sets!r}"
        )
    if not isinstance(scaling, dict):
        raise ModelDirectoryError(f"{path}: rope_scaling must be a set of settings, but is {scaling!r}")
    own = {key: value for key, value in (sets.get(kind) or {}).items() if value is not None}
    given = {"rope_theta": keys[THETAS[kind]]} | own | scaling
    return build_rotary(path, keys, "rope_scaling" if scaling else "rope_parameters", given, head_dim)
