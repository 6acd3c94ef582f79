"""A model directory to the module that engines are built from."""

from pathlib import Path

import torch

from models.config import read_config
from models.heads import ClassificationHead, DenseSpec, EmbeddingHead, TextModel
from models.info import ModelDirectoryError, ModelInfo, read_json
from models.registry import find_family
from models.weights import assign_weights, read_checkpoint, rename_tensors

DENSE_ACTIVATIONS = {"torch.nn.modules.activation.Tanh": "tanh", "torch.nn.modules.linear.Identity": "none"}


def load_model(directory: Path, info: ModelInfo) -> TextModel:
    """Build the module for `info.task` and fill it with the directory's weights, fp32, on the CPU."""
    config = read_config(directory)
    family = find_family(info.architecture)
    renames = [(pattern, f"encoder.{target}") for pattern, target in family.renames]
    dense = tuple(read_dense(directory / folder) for folder in info.dense)
    # Built without memory and filled later: initialising weights that are overwritten takes seconds for large models.
    with torch.device("meta"):
        encoder = family.encoder(config)
        if info.task == "classify":
            head: ClassificationHead | EmbeddingHead = ClassificationHead(
                config.hidden_size, config.num_labels, family.head_activation(config)
            )
        else:
            head = EmbeddingHead(info.pooling, dense, info.normalize)
    model = TextModel(encoder, head).to_empty(device="cpu")
    if info.task == "classify":
        renames += [(pattern, f"head.{target}") for pattern, target in family.head_renames]
    tensors = rename_tensors(read_checkpoint(directory), family.prefix, renames, family.ignored)
    for index, folder in enumerate(info.dense):
        for name, value in read_checkpoint(directory / folder).items():
            tensors[f"head.dense.{index}.{name.removeprefix('linear.')}"] = value
    assign_weights(model, tensors, directory)
    return model.eval()


def read_dense(folder: Path) -> DenseSpec:
    keys = read_json(folder / "config.json")
    activation = keys.get("activation_function", "torch.nn.modules.linear.Identity")
    if activation not in DENSE_ACTIVATIONS:
        raise ModelDirectoryError(
            f"{folder / 'config.json'}: activation_function {activation!r} is not supported; "
            f"supported are {', '.join(DENSE_ACTIVATIONS)}"
        )
    return DenseSpec(
        keys["in_features"], keys["out_features"], bool(keys.get("bias", True)), DENSE_ACTIVATIONS[activation]
    )
