"""sentence-transformers' modules behind the encoder, from their folders: Dense, LayerNorm, Normalize.

And linear layers that directories have in other files: ColBERT's, and BGE-M3's.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from models.heads import (
    Dense,
    EmbeddingHead,
    MultiVectorHead,
    Normalize,
    PromptlessEmbeddingHead,
    TokenWeightHead,
)
from models.info import ModelInfo
from models.keys import ModelDirectoryError, read_object, require_number, require_torch_class
from models.late_interaction import LINEAR
from models.module_chain import FEATURES, check_features
from models.pooling import check_modes
from models.weights import open_checkpoint, open_pickle
from runtime.lazy_module import LazyWeight

DENSE_ACTIVATIONS = {"GELU": "gelu", "Identity": "none", "ReLU": "relu", "SiLU": "silu", "Tanh": "tanh"}
DEFAULT_ACTIVATION = "tanh"
"""What sentence-transformers takes where the key is missing."""


def build_embedding_head(directory: Path, hidden_size: int, info: ModelInfo) -> EmbeddingHead:
    """Raises ModelDirectoryError."""
    check_modes(info.pooling)
    modules, width = build_modules(directory, info.modules, hidden_size * len(info.pooling))
    head = EmbeddingHead if info.pools_prompt else PromptlessEmbeddingHead
    return head(info.pooling, modules, info.normalize, info.output_dim if info.output_dim < width else None)


def build_token_head(directory: Path, hidden_size: int, info: ModelInfo) -> MultiVectorHead | TokenWeightHead:
    """Raises ModelDirectoryError where a linear layer has another width than other files say."""
    modules, width = build_modules(directory, info.modules, hidden_size, FEATURES.tokens)
    if width != info.output_dim:
        raise ModelDirectoryError(f"{directory}: vectors have {width} numbers and not {info.output_dim}, as it says")
    return MultiVectorHead(modules, info.normalize) if info.task == "multi_vector" else TokenWeightHead(modules)


def build_modules(
    directory: Path, modules: Sequence[tuple[str, str]], width: int, feature: str = FEATURES.pooled
) -> tuple[list[nn.Module], int]:
    """The modules, (kind, folder) in order, without their weights; and the width of what the last one gives.

    `width` is that of the rows, which sentence-transformers calls `feature`. Raises ModelDirectoryError where a module
    cannot be followed, or does not take what the one before it gives.
    """
    built: list[nn.Module] = []
    for kind, folder in modules:
        path = directory / folder / "config.json"
        if kind == "Dense":
            dense = build_dense(path, width, feature)
            built.append(dense)
            width = dense.linear.out_features
        elif kind == "LayerNorm":
            built.append(build_layer_norm(path, width))
        elif kind == LINEAR:
            linear = build_linear(directory, folder, width)
            built.append(linear)
            width = linear.out_features
        else:
            built.append(Normalize())
    return built, width


def build_dense(path: Path, width: int, feature: str) -> Dense:
    keys = read_object(path)
    activation = DEFAULT_ACTIVATION
    if "activation_function" in keys:
        activation = require_torch_class(path, keys, "activation_function", DENSE_ACTIVATIONS)
    if keys.get("use_residual"):
        raise ModelDirectoryError(f"{path}: use_residual is not supported")
    check_features(path, keys, feature)
    in_features, out_features = (require_number(path, keys, name) for name in ("in_features", "out_features"))
    check_width(path, "in_features", in_features, width)
    return Dense(in_features, out_features, bool(keys.get("bias", True)), activation)


def build_linear(directory: Path, file: str, width: int) -> nn.Linear:
    tensors = open_linear(directory, file)
    out_features, in_features = tensors["weight"].like.shape
    check_width(directory / file, "the linear layer's width", in_features, width)
    return nn.Linear(in_features, out_features, "bias" in tensors)


def open_linear(directory: Path, file: str) -> dict[str, LazyWeight]:
    """A pickled layer; without a file's name the one beside the encoder's weights. Raises ModelDirectoryError."""
    name = "weight" if file else "linear.weight"
    tensors = open_pickle(directory / file) if file else open_checkpoint(directory)
    if name not in tensors or tensors[name].like.ndim != 2:
        raise ModelDirectoryError(f"{directory / file}: the tensor {name!r} is missing, or no matrix")
    return tensors if file else {"weight": tensors[name]}


def build_layer_norm(path: Path, width: int) -> nn.LayerNorm:
    """With torch's own epsilon, which the file cannot change."""
    dimension = require_number(path, read_object(path), "dimension")
    check_width(path, "dimension", dimension, width)
    return nn.LayerNorm(dimension)


def check_width(path: Path, name: str, value: int, width: int) -> None:
    if value != width:
        raise ModelDirectoryError(f"{path}: {name} is {value}, but the module gets rows of {width} numbers")


def open_module_weights(directory: Path, modules: Sequence[tuple[str, str]]) -> dict[str, LazyWeight]:
    """Their tensors by the index of the module: `0.linear.weight`, `1.weight`."""
    return {
        f"{index}.{name.removeprefix('norm.')}": value
        for index, (kind, folder) in enumerate(modules)
        if kind != "Normalize"
        for name, value in (
            open_linear(directory, folder) if kind == LINEAR else open_checkpoint(directory / folder)
        ).items()
    }
