"""A model directory to the module that engines are built from."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.config import EncoderConfig, read_config
from models.decoder_config import read_decoder_config
from models.decoder_layers import Decoder
from models.family import Family
from models.heads import ClassificationHead, DenseSpec, EmbeddingHead, TextModel
from models.info import CLASSIFIER_SUFFIX, ModelDirectoryError, ModelInfo, read_object, require_number
from models.registry import find_decoder, find_family
from models.weights import assign_weights, drop_tied_head, read_checkpoint, rename_tensors

DENSE_ACTIVATIONS = {
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.linear.Identity": "none",
}


def load_model(directory: Path, info: ModelInfo) -> TextModel | Decoder:
    """Build the module for `info.task` and fill it with the directory's weights, fp32, on the CPU."""
    return load_decoder(directory, info) if info.task == "generate" else load_encoder(directory, info)


def load_decoder(directory: Path, info: ModelInfo) -> Decoder:
    """A language model, whose head is its own or its table of embeddings."""
    config = read_decoder_config(directory)
    family = find_decoder(info.architecture, config.model_type)
    with torch.device("meta"):
        model = family.decoder(config)
    tensors = rename_tensors(read_checkpoint(directory), family.prefix, family.renames, family.ignored)
    if config.is_tied:
        drop_tied_head(tensors, "lm_head.weight", "embedding.weight", directory)
    assign_weights(model, family.adjust(tensors), directory)
    return model.eval()


def load_encoder(directory: Path, info: ModelInfo) -> TextModel:
    """The encoder with its head for `info.task`."""
    config = read_config(directory)
    family = find_family(info.architecture, config.model_type)
    dense = [read_dense(directory / folder) for folder in info.dense]
    check_widths(directory, config, dense)
    # Built without memory and filled later: initialising weights that are overwritten takes seconds for large models.
    with torch.device("meta"):
        head = build_head(family, config, info, dense)
        model = TextModel(family.encoder(config), head)
    tensors = read_encoder(directory, family, info)
    for index, folder in enumerate(info.dense):
        for name, value in read_checkpoint(directory / folder).items():
            tensors[f"head.dense.{index}.{name.removeprefix('linear.')}"] = value
    assign_weights(model, tensors, directory)
    return model.eval()


def build_head(
    family: Family, config: EncoderConfig, info: ModelInfo, dense: Sequence[DenseSpec]
) -> ClassificationHead | EmbeddingHead:
    if info.task == "classify":
        return ClassificationHead(config.hidden_size, config.num_labels, family.head_activation)
    return EmbeddingHead(info.pooling, tuple(dense), info.normalize)


def read_encoder(directory: Path, family: Family, info: ModelInfo) -> dict[str, Tensor]:
    """The checkpoint under our names. Embedding with a classifier's checkpoint leaves its head unused."""
    renames = [(pattern, f"encoder.{target}") for pattern, target in family.renames]
    ignored = list(family.ignored)
    if info.task == "classify":
        renames += [(pattern, f"head.{target}") for pattern, target in family.head_renames]
    elif info.architecture.endswith(CLASSIFIER_SUFFIX):
        ignored += [pattern for pattern, _ in family.head_renames]
    return rename_tensors(read_checkpoint(directory), family.prefix, renames, ignored)


def read_dense(folder: Path) -> DenseSpec:
    path = folder / "config.json"
    keys = read_object(path)
    activation = keys.get("activation_function", "torch.nn.modules.linear.Identity")
    if activation not in DENSE_ACTIVATIONS:
        raise ModelDirectoryError(
            f"{path}: activation_function {activation!r} is not supported; supported are {', '.join(DENSE_ACTIVATIONS)}"
        )
    if keys.get("use_residual"):
        raise ModelDirectoryError(f"{path}: use_residual is not supported")
    for name in ("module_input_name", "module_output_name"):
        if keys.get(name) not in (None, "sentence_embedding"):
            raise ModelDirectoryError(f"{path}: {name} {keys[name]!r} is not supported; only 'sentence_embedding' is")
    in_features, out_features = (require_number(path, keys, name) for name in ("in_features", "out_features"))
    return DenseSpec(in_features, out_features, bool(keys.get("bias", True)), DENSE_ACTIVATIONS[activation])


def check_widths(directory: Path, config: EncoderConfig, dense: Sequence[DenseSpec]) -> None:
    """Each Dense module takes what the one before it gives."""
    width = config.hidden_size
    for spec in dense:
        if spec.in_features != width:
            raise ModelDirectoryError(
                f"{directory / 'modules.json'}: a Dense module has in_features {spec.in_features}, but gets {width}"
            )
        width = spec.out_features
