"""What config.json says of the heads over an encoder, where their layers are not those of BERT."""

from dataclasses import dataclass
from pathlib import Path

from models.activations import read_activation
from models.defaults import Keys
from models.keys import ModelDirectoryError

POOLINGS = {"modernbert": {"cls": "cls", "mean": "mean"}}
"""Values of `classifier_pooling` by model type, and our names of them."""


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """The defaults are BERT's."""

    pooling: str = "cls"
    """Of classifiers: a mode of `padless::pool`."""
    activation: str = ""
    """Behind the first layer, in our names; empty: the family's own."""
    has_dense_bias: bool = True
    """The first layer's."""
    has_norm: bool = False
    """Classifiers, of texts and of tokens, have the first layer, the activation and the norm of a head of words."""
    has_norm_bias: bool = True
    has_word_bias: bool = True


def read_head_config(path: Path, keys: Keys) -> HeadConfig:
    """Raises ModelDirectoryError."""
    model_type = keys["model_type"]
    if model_type == "modernbert":
        return HeadConfig(
            pooling=read_pooling(path, keys),
            activation=read_activation(path, keys["classifier_activation"]),
            has_dense_bias=bool(keys["classifier_bias"]),
            has_norm=True,
            has_norm_bias=bool(keys["norm_bias"]),
            has_word_bias=bool(keys["decoder_bias"]),
        )
    return HeadConfig()


def read_pooling(path: Path, keys: Keys) -> str:
    known, name = POOLINGS[keys["model_type"]], keys["classifier_pooling"]
    if name not in known:
        raise ModelDirectoryError(
            f"{path}: classifier_pooling {name!r} is not supported; supported are {', '.join(known)}"
        )
    return known[name]
