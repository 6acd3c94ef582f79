"""What config.json says of a decoder's attention: of each layer its window, its rotary positions and its scale."""

from pathlib import Path

from models.decoder_defaults import Keys
from models.keys import ModelDirectoryError, require_number
from models.rotary import RotaryConfig
from models.rotary_config import read_rotary, require_positive
from models.rotary_layers_config import FULL, SLIDING, read_rotary_of

LAYER_TYPES = (FULL, SLIDING)
SWITCHED = ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3")
"""Their windows count only with `use_sliding_window`."""
ALTERNATING = ("cohere2", "gemma3_text", "olmo3")
"""One layer in so many has no window."""
WINDOWED = (*SWITCHED, *ALTERNATING, "gemma2", "mistral", "mixtral", "phi3")
"""Those that can have windows."""
OWN_POSITIONS = ("gemma3_text", "olmo3")
"""Layers with a window have rotary positions of their own."""
PARTIAL = ("gpt_neox", "phi3", "stablelm")
"""Positions may turn a part of each head."""


def sees_past_only(keys: Keys) -> bool:
    """Of all layers: a token sees those before it and itself, else all of its text."""
    return not keys.get("use_bidirectional_attention") and keys.get("is_causal") is not False


def read_windows(path: Path, keys: Keys, layer_types: tuple[str, ...]) -> tuple[int, ...]:
    """How many keys behind itself a token sees, and before itself where it sees more than the past; -1 for all."""
    if SLIDING not in layer_types:
        return (-1,) * len(layer_types)
    width = require_number(path, keys, "sliding_window")
    if sees_past_only(keys):
        window = width - 1  # HF counts the token itself among those it sees.
    elif keys["model_type"] == "gemma3_text" and keys.get("use_bidirectional_attention"):
        window = width // 2
    else:
        raise ModelDirectoryError(f"{path}: windows of attention that looks both ways are not supported")
    return tuple(window if kind == SLIDING else -1 for kind in layer_types)


def read_layer_types(path: Path, keys: Keys, num_layers: int) -> tuple[str, ...]:
    """One of LAYER_TYPES for each layer."""
    model_type = keys["model_type"]
    if model_type not in WINDOWED:
        return (FULL,) * num_layers
    has_window = keys.get("sliding_window") is not None
    if model_type in SWITCHED:
        has_window = has_window and bool(keys["use_sliding_window"])
    if "layer_types" not in keys:
        return tuple(SLIDING if has_window and slides(path, keys, layer) else FULL for layer in range(num_layers))
    layer_types = keys["layer_types"]
    is_known = isinstance(layer_types, list) and all(kind in LAYER_TYPES for kind in layer_types)
    if not is_known or len(layer_types) != num_layers:
        known = " or ".join(LAYER_TYPES)
        raise ModelDirectoryError(f"{path}: layer_types must be {num_layers} times {known}, but is {layer_types!r}")
    if SLIDING in layer_types and not has_window:
        raise ModelDirectoryError(
            f"{path}: layer_types has sliding_attention, but no sliding_window is set or used; set one"
        )
    return tuple(layer_types)


def slides(path: Path, keys: Keys, layer: int) -> bool:
    """Whether a layer has a window, where `layer_types` are not given."""
    model_type = keys["model_type"]
    if model_type == "gemma2":
        return layer % 2 == 0
    if model_type in ALTERNATING:
        return (layer + 1) % require_number(path, keys, "sliding_window_pattern") > 0
    if model_type == "smollm3":
        return not knows_positions(path, keys, layer)
    if model_type == "qwen2_moe":
        return layer % 2 == 0 and layer < require_number(path, keys, "max_window_layers", least=0)
    if model_type in ("qwen2", "qwen3"):
        return layer >= require_number(path, keys, "max_window_layers", least=0)
    return True


def read_rotaries(
    path: Path, keys: Keys, head_dim: int, layer_types: tuple[str, ...]
) -> tuple[RotaryConfig | None, ...]:
    """None: heads are not turned."""
    model_type = keys["model_type"]
    if model_type == "gpt2":
        return (None,) * len(layer_types)
    if model_type in OWN_POSITIONS:
        # Scaling of older files is for layers that see everything.
        unscaled = {key: value for key, value in keys.items() if key != "rope_scaling"}
        found = {
            kind: read_rotary_of(path, keys if kind == FULL else unscaled, kind, head_dim) for kind in set(layer_types)
        }
        return tuple(found[kind] for kind in layer_types)
    rotary = read_rotary(path, rename_longrope(keys), head_dim, can_be_partial=model_type in PARTIAL)
    if model_type == "cohere2":
        return tuple(rotary if kind == SLIDING else None for kind in layer_types)
    if model_type == "smollm3":
        return tuple(rotary if knows_positions(path, keys, layer) else None for layer in range(len(layer_types)))
    return (rotary,) * len(layer_types)


def rename_longrope(keys: Keys) -> Keys:
    """Phi-3's first files call it su or yarn."""
    scaling = keys.get("rope_scaling")
    if keys["model_type"] != "phi3" or not isinstance(scaling, dict) or scaling.get("type") not in ("su", "yarn"):
        return keys
    return keys | {"rope_scaling": scaling | {"type": "longrope"}}


def knows_positions(path: Path, keys: Keys, layer: int) -> bool:
    """Of SmolLM3's layers, of which some turn nothing (Kazemnejad et al., 2023: NoPE)."""
    if "no_rope_layers" not in keys:
        return (layer + 1) % require_number(path, keys, "no_rope_layer_interval") > 0
    known, num_layers = keys["no_rope_layers"], require_number(path, keys, "num_hidden_layers")
    if not isinstance(known, list) or len(known) < num_layers or any(each not in (0, 1) for each in known):
        raise ModelDirectoryError(f"{path}: no_rope_layers must be {num_layers} times 0 or 1, but is {known!r}")
    return bool(known[layer])


def read_softmax_scales(path: Path, keys: Keys, head_dim: int, num_layers: int) -> tuple[float, ...]:
    model_type = keys["model_type"]
    is_named = model_type in ("gemma2", "gemma3_text")
    width = require_number(path, keys, "query_pre_attn_scalar") if is_named else head_dim
    softmax_scale, by_layer = float(width) ** -0.5, False
    if model_type == "granite":
        softmax_scale = require_positive(path, keys, "attention_multiplier")
    if model_type == "gpt2":
        softmax_scale = softmax_scale if keys.get("scale_attn_weights", True) else 1.0
        by_layer = bool(keys.get("scale_attn_by_inverse_layer_idx"))
    return tuple(softmax_scale / (layer + 1 if by_layer else 1) for layer in range(num_layers))
