"""Model directories by path, by package, and from a stand-in of a hub on this machine."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_stub import COMMIT, Hub, run_hub

from models.info import ModelDirectoryError
from models.source import find_directory

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from models.info import ModelDirectoryError
from models.source import find_directory
try:
    print(find_directory(hub=sys.argv[1], onnx_file=(sys.argv[2:] or [None])[0]))
except ModelDirectoryError as error:
    sys.exit(str(error))
"""
MODULES = [{"path": "0_BERT", "type": "sentence_transformers.models.Transformer"}]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """org/new has both kinds of weights, org/old only pickles and org/empty no model."""
    write_files(
        tmp_path / "org/new",
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "tokenizer.json",
        "README.md",
        "1_Pooling/config.json",
        "2_Dense/pytorch_model.bin",
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "onnx/model_quantized.onnx",
        "onnx/config.json",
    )
    write_files(tmp_path / "org/old", "config.json", "pytorch_model.bin", "vocab.txt", "tf_model.h5")
    write_files(tmp_path / "org/empty", "tokenizer.json")
    write_files(tmp_path / "org/gliner", "gliner_config.json", "pytorch_model.bin")
    write_files(tmp_path / "org/folder", "0_BERT/config.json", "0_BERT/pytorch_model.bin", "0_BERT/tf_model.h5")
    (tmp_path / "org/folder/modules.json").write_text(json.dumps(MODULES), encoding="utf-8")
    with run_hub(tmp_path) as server:
        yield server


def write_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{folder.name} {name}", encoding="utf-8")


def fetch(source: str, hub_url: str, home: Path, *onnx_file: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface-hub reads its environment variables when it is imported."""
    settings = {"HF_ENDPOINT": hub_url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, source, *onnx_file],
        cwd=ROOT,
        env=inherited | settings | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


def list_fetched(answer: subprocess.CompletedProcess[str]) -> set[str]:
    assert answer.returncode == 0, answer.stderr
    folder = Path(answer.stdout.strip())
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path / "model", "config.json")
    assert find_directory(path=str(tmp_path / "model")) == tmp_path / "model"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_directory(path="~/model") == tmp_path / "model"


def test_transformer_in_a_folder(hub: Hub, tmp_path: Path) -> None:
    """Its pickle is fetched where it has nothing else, and a path to such a directory is one to a model."""
    answer = fetch("org/folder", hub.url, tmp_path / "home")
    assert list_fetched(answer) == {"modules.json", "0_BERT/config.json", "0_BERT/pytorch_model.bin"}
    folder = tmp_path / "org/folder"
    assert find_directory(path=str(folder)) == folder
    (folder / "0_BERT/config.json").unlink()
    with pytest.raises(ModelDirectoryError, match=r"folder/0_BERT has no config\.json"):
        find_directory(path=str(folder))


def test_path_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=r"source\.path .*nowhere: there is no such directory"):
        find_directory(path=str(tmp_path / "nowhere"))
    with pytest.raises(ModelDirectoryError, match=r"has no config\.json"):
        find_directory(path=str(tmp_path))


def test_gliner_is_refused_before_its_weights_are_fetched(hub: Hub, tmp_path: Path) -> None:
    answer = fetch("org/gliner", hub.url, tmp_path / "home")
    assert answer.returncode == 1
    assert re.search(r"source\.hub org/gliner: .* is a GLiNER model \(gliner_config\.json\).*not served", answer.stderr)
    assert not list((tmp_path / "home").rglob("*.bin"))
    with pytest.raises(ModelDirectoryError, match=r"is a GLiNER model .* Use a model for token classification"):
        find_directory(path=str(tmp_path / "org/gliner"))


def test_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is found without running it."""
    write_files(tmp_path / "weights_of_something", "model/config.json")
    (tmp_path / "weights_of_something/__init__.py").write_text("raise AssertionError('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    found = find_directory(package="weights_of_something:model")
    assert found == tmp_path / "weights_of_something/model"
    with pytest.raises(ModelDirectoryError, match="there is no such directory"):
        find_directory(package="weights_of_something:other")


@pytest.mark.parametrize("package", ["no_such_package_at_all:model", "no.such.package:model", "sys:model", ":model"])
def test_package_that_is_none(package: str) -> None:
    with pytest.raises(ModelDirectoryError, match=r"source\.package .* is not installed; install"):
        find_directory(package=package)


def test_hub_fetches_what_is_needed_once(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    answer = fetch("org/new", hub.url, home)
    needed = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "1_Pooling/config.json",
        "2_Dense/pytorch_model.bin",
    }
    assert list_fetched(answer) == needed
    assert Path(answer.stdout.strip()).name == COMMIT
    hub.downloaded.clear()
    assert list_fetched(fetch("org/new@v1", hub.url, home)) == needed
    assert not hub.downloaded
    assert list_fetched(fetch("org/new", "http://127.0.0.1:9", home, HF_HUB_OFFLINE="1")) == needed


def test_hub_fetches_pickles_where_there_is_nothing_else(hub: Hub, tmp_path: Path) -> None:
    answer = fetch("org/old", hub.url, tmp_path / "home")
    assert list_fetched(answer) == {"config.json", "pytorch_model.bin", "vocab.txt"}


def test_hub_fetches_an_onnx_file_in_place_of_weights(hub: Hub, tmp_path: Path) -> None:
    answer = fetch("org/new", hub.url, tmp_path / "home", "onnx/model.onnx")
    fetched = {path for path in list_fetched(answer) if not path.endswith(".json")}
    assert fetched == {"onnx/model.onnx", "onnx/model.onnx_data", "2_Dense/pytorch_model.bin"}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("org/none", "org/none: cannot be downloaded: .*(404|not found)"),
        ("org/new@v9", "org/new@v9: cannot be downloaded: .*(404|not found)"),
        ("not a name", "not a name: cannot be downloaded: .*[Rr]epo"),
        ("org/empty", r"has no config\.json"),
    ],
)
def test_hub_errors(hub: Hub, tmp_path: Path, source: str, reason: str) -> None:
    answer = fetch(source, hub.url, tmp_path / "home")
    assert answer.returncode == 1
    assert re.search(reason, answer.stderr), answer.stderr
    assert "Traceback" not in answer.stderr


def test_hub_out_of_reach(tmp_path: Path) -> None:
    answer = fetch("org/new", "http://127.0.0.1:9", tmp_path / "home", HF_HUB_OFFLINE="1")
    assert answer.returncode == 1
    assert "cannot be downloaded" in answer.stderr and "use source.path" in answer.stderr
