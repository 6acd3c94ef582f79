"""HF's config.json to one frozen description of a decoder. The only reader of HF's keys for decoders."""

from dataclasses import dataclass
from pathlib import Path

from models.activations import read_activation
from models.config import check_supported
from models.defaults import Keys
from models.keys import ModelDirectoryError, read_architecture, read_keys, require_number
from models.rotary import RotaryConfig
from models.rotary_config import read_heads, read_rotary, require_positive

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
