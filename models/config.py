"""HF's config.json to one frozen description of an encoder. The only reader of HF's keys for architectures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.info import ModelDirectoryError, read_json

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """A bidirectional encoder, in our names."""

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    activation: str
    max_position_embeddings: int
    type_vocab_size: int
    norm_eps: float
    pad_token_id: int
    embedding_size: int
    """Width of the embedding tables; projected to `hidden_size` where it differs."""
    num_groups: int
    """Distinct sets of layer weights; as many as layers unless they are shared (ALBERT)."""
    layers_per_group: int
    num_relative_buckets: int
    """Relative position bias (MPNet)."""
    task_type_vocab_size: int
    """ERNIE's task embedding; 0 for none."""
    num_labels: int
    head_activation: str
    """Between the two layers of a classification head, where the config names one."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


def read_config(directory: Path) -> EncoderConfig:
    """Raises ModelDirectoryError where a key is missing or its value is one we do not know."""
    path = directory / "config.json"
    keys = read_json(path)

    def get(*names: str, default: Any = None) -> Any:
        for name in names:
            if keys.get(name) is not None:
                return keys[name]
        if default is None:
            raise ModelDirectoryError(f"{path}: the key {names[0]!r} is missing")
        return default

    check_supported(path, keys)
    hidden_size = get("hidden_size", "dim")
    num_layers = get("num_hidden_layers", "n_layers")
    return EncoderConfig(
        architecture=get("architectures", default=["unknown"])[0],
        vocab_size=get("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=get("num_attention_heads", "n_heads"),
        intermediate_size=get("intermediate_size", "hidden_dim"),
        activation=read_activation(path, get("hidden_act", "activation", default="gelu")),
        max_position_embeddings=get("max_position_embeddings"),
        type_vocab_size=get("type_vocab_size", default=0),
        norm_eps=get("layer_norm_eps", default=1e-12),
        pad_token_id=get("pad_token_id", default=0),
        embedding_size=get("embedding_size", default=hidden_size),
        num_groups=get("num_hidden_groups", default=num_layers),
        layers_per_group=get("inner_group_num", default=1),
        num_relative_buckets=get("relative_attention_num_buckets", default=0),
        task_type_vocab_size=get("task_type_vocab_size", default=3) if keys.get("use_task_id") else 0,
        num_labels=count_labels(keys),
        head_activation=read_activation(path, get("summary_activation", default="gelu")),
    )


def check_supported(path: Path, keys: dict[str, Any]) -> None:
    position_type = keys.get("position_embedding_type", "absolute")
    if position_type != "absolute":
        raise ModelDirectoryError(f"{path}: position_embedding_type {position_type!r} is not supported, only 'absolute'")
    if keys.get("is_decoder"):
        raise ModelDirectoryError(f"{path}: is_decoder is set; decoders are not served yet")


def read_activation(path: Path, name: str) -> str:
    if name not in ACTIVATIONS:
        raise ModelDirectoryError(f"{path}: unknown activation {name!r}; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def count_labels(keys: dict[str, Any]) -> int:
    labels = keys.get("id2label")
    return len(labels) if labels else int(keys.get("num_labels", 2))
