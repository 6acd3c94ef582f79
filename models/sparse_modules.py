"""sentence-transformers' SparseEncoder directories: a masked language model, and SPLADE's pooling behind it."""

from pathlib import Path

from models.keys import ModelDirectoryError, read_object
from models.module_chain import find_module, list_modules

TRANSFORMERS = ("Transformer", "MLMTransformer")
POOLING = "SpladePooling"


def is_sparse(directory: Path) -> bool:
    """Raises ModelDirectoryError where modules.json cannot be read."""
    return find_module(directory, POOLING) is not None


def check_sparse(directory: Path) -> None:
    """Raises ModelDirectoryError for anything but max pooling of log(1 + relu(logits)) over the Transformer's."""
    path = directory / "modules.json"
    pairs = [(kind.rpartition(".")[2], folder) for kind, folder in list_modules(path)]
    if len(pairs) != 2 or pairs[0][0] not in TRANSFORMERS or pairs[1][0] != POOLING:
        kinds = ", ".join(kind for kind, _ in pairs)
        raise ModelDirectoryError(f"{path}: the modules {kinds} are not supported; only Transformer, {POOLING} are")
    path = directory / pairs[1][1] / "config.json"
    keys = read_object(path)
    for name, only in (("pooling_strategy", "max"), ("activation_function", "relu")):
        if keys.get(name, only) != only:
            raise ModelDirectoryError(f"{path}: {name} {keys[name]!r} is not supported; only {only!r} is")
