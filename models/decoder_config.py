"""HF's config.json to one frozen description of a decoder. With its parts the only reader of HF's keys for decoders."""

from dataclasses import dataclass, field
from pathlib import Path

from models.activations import read_activation
from models.decoder_attention import read_layer_types, read_rotaries, read_softmax_scales, read_windows, sees_past_only
from models.decoder_defaults import Keys
from models.decoder_layout import DecoderLayout, read_layout
from models.experts_config import ExpertsConfig, read_experts
from models.keys import check_supported, read_architecture, read_keys, require_number
from models.rotary import RotaryConfig
from models.rotary_config import read_heads, require_positive


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A language model, in our names."""

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
    rotaries: tuple[RotaryConfig | None, ...]
    """Of each layer; None: it does not turn heads, and positions are learned rows or unknown to it."""
    windows: tuple[int, ...]
    """Of each layer: how many keys behind itself a token sees, and before itself too unless `is_causal`; -1 for all."""
    softmax_scales: tuple[float, ...]
    """Of each layer."""
    has_qkv_bias: bool
    has_o_bias: bool
    has_mlp_bias: bool
    is_tied: bool
    """The table of embeddings is the language model's head too."""
    is_causal: bool = True
    """A token sees those before it and itself; else all of its text, which only those that read can do."""
    experts: ExpertsConfig | None = None
    layout: DecoderLayout = field(default_factory=DecoderLayout)
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    """Of what attention and feed-forward give, before it is added."""
    logit_scale: float = 1.0
    attention_softcap: float = 0.0
    """0 for none, as below."""
    logit_softcap: float = 0.0
    max_input_tokens: int = 0
    """No text that is served is longer, what is generated included; 0: as many as there are positions."""

    @property
    def longest_text(self) -> int:
        return self.max_input_tokens or self.max_position_embeddings


def read_decoder_config(directory: Path) -> DecoderConfig:
    """Raises ModelDirectoryError where a key is missing or its value is one we do not know."""
    path = directory / "config.json"
    keys = read_keys(directory)
    check_supported(path, keys)
    hidden_size, num_layers = (require_number(path, keys, name) for name in ("hidden_size", "num_hidden_layers"))
    num_heads, num_kv_heads, head_dim = read_decoder_heads(path, keys, hidden_size)
    model_type = keys["model_type"]
    is_gemma = model_type.startswith("gemma")
    has_bias = bool(keys.get("attention_bias"))
    layer_types = read_layer_types(path, keys, num_layers)
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
        activation="gelu_tanh" if is_gemma else read_activation(path, keys["hidden_act"]),
        norm_eps=float(keys["layer_norm_eps"]),
        max_position_embeddings=require_number(path, keys, "max_position_embeddings"),
        rotaries=read_rotaries(path, keys, head_dim, layer_types),
        windows=read_windows(path, keys, layer_types),
        softmax_scales=read_softmax_scales(path, keys, head_dim, num_layers),
        has_qkv_bias=has_bias or model_type == "qwen2",
        has_o_bias=has_bias and model_type not in ("qwen2_moe", "stablelm"),
        has_mlp_bias=has_bias if model_type == "falcon" else bool(keys.get("mlp_bias")),
        is_tied=bool(keys["tie_word_embeddings"]),
        is_causal=sees_past_only(keys),
        experts=read_experts(path, keys, num_layers),
        layout=read_layout(path, keys),
        embedding_scale=hidden_size**0.5 if is_gemma else read_scale(path, keys, "embedding_multiplier"),
        residual_scale=read_scale(path, keys, "residual_multiplier"),
        logit_scale=read_logit_scale(path, keys),
        attention_softcap=read_softcap(path, keys, "attn_logit_softcapping"),
        logit_softcap=read_softcap(path, keys, "final_logit_softcapping"),
    )


def read_decoder_heads(path: Path, keys: Keys, hidden_size: int) -> tuple[int, int, int]:
    """As `read_heads`. Falcon's first models have one head of keys, or as many as of queries."""
    if keys["model_type"] == "falcon" and not keys["new_decoder_architecture"]:
        keys = keys | {"num_key_value_heads": 1 if keys["multi_query"] else None}
    return read_heads(path, keys, hidden_size)


def read_intermediate_size(path: Path, keys: Keys, hidden_size: int) -> int:
    """GPT-2 and Falcon may leave it out."""
    if keys["model_type"] in ("falcon", "gpt2") and "intermediate_size" not in keys:
        return 4 * hidden_size
    return require_number(path, keys, "intermediate_size")


def read_scale(path: Path, keys: Keys, name: str) -> float:
    """Granite's."""
    return require_positive(path, keys, name) if keys["model_type"] == "granite" else 1.0


def read_logit_scale(path: Path, keys: Keys) -> float:
    if keys["model_type"] in ("cohere", "cohere2"):
        return require_positive(path, keys, "logit_scale")
    return 1 / read_scale(path, keys, "logits_scaling")


def read_softcap(path: Path, keys: Keys, name: str) -> float:
    if keys["model_type"] not in ("gemma2", "gemma3_text") or keys.get(name) is None:
        return 0.0
    return require_positive(path, keys, name)
