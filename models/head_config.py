"""What config.json says of the heads over an encoder, where their layers are not those of BERT."""

from dataclasses import dataclass
from pathlib import Path

from models.activations import read_activation
from models.defaults import Keys
from models.keys import ModelDirectoryError

POOLINGS = {
    "eurobert": {"bos": "cls", "late": "late", "mean": "mean"},
    "modernbert": {"cls": "cls", "mean": "mean"},
}
"""Values of `classifier_pooling` by model type, and our names of them."""


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """The defaults are BERT's."""

    pooling: str = "cls"
    """Of classifiers: a mode of `padless::pool`; late: the mean of all tokens' logits."""
    activation: str = ""
    """Behind the first layer, in our names; empty: the family's own."""
    pooler_activation: str = ""
    """The same of classifiers alone; empty: `activation`."""
    has_dense_bias: bool = True
    """The first layer's."""
    has_transform: bool = True
    """Else a head of words is its table alone."""
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
    if model_type == "eurobert":
        # The one layer of this head has a bias where the feed-forward blocks do.
        return HeadConfig(pooling=read_pooling(path, keys), has_transform=False, has_word_bias=bool(keys["mlp_bias"]))
    if model_type == "convbert":
        return HeadConfig(pooler_activation=read_activation(path, keys["hidden_act"]))
    if model_type in ("deberta", "deberta-v2"):
        return HeadConfig(pooler_activation=read_activation(path, keys["pooler_hidden_act"]))
    return HeadConfig()


def read_pooling(path: Path, keys: Keys) -> str:
    """Under the key of transformers, or that of EuroBERT's own code before it."""
    known = POOLINGS[keys["model_type"]]
    names = [keys[key] for key in ("classifier_pooling", "clf_pooling") if key in keys] or ["late"]
    name = names[0]
    if names[-1] != name:
        raise ModelDirectoryError(
            f"{path}: classifier_pooling {name!r} and clf_pooling {names[-1]!r} contradict each other; take out one"
        )
    if name not in known:
        raise ModelDirectoryError(
            f"{path}: classifier_pooling {name!r} is not supported; supported are {', '.join(known)}"
        )
    return known[name]
