"""ONNX files that cannot be served, and settings that do not go with one: one line each, which names key and remedy."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from onnx_dirs import INPUTS, deploy, export, load_theirs, make_directory, open_directory, strip
from sentence_dirs import HIDDEN_SIZE, make_base, write_json

from models.info import ModelDirectoryError
from models.weight_files import list_files
from runtime.config import UnusableConfig
from server.config import ConfigError, ServerConfig

FILE = {"file": "model.onnx"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model.onnx, and no weights."""
    folder = tmp_path_factory.mktemp("base")
    make_directory(folder / "full")
    return strip(folder / "full", folder / "model")


@pytest.fixture
def directory(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "model")


def write_graph(path: Path, inputs: Sequence[str], outputs: Sequence[str], *, width: int = HIDDEN_SIZE) -> None:
    """Of inputs that nothing is made of, and outputs of zeros."""
    shapes = {name: helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in inputs}
    zeros = {name: helper.make_tensor(name, TensorProto.FLOAT, [1, 1, width], [0.0] * width) for name in outputs}
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "s", width]) for name in outputs]
    nodes = [helper.make_node("Constant", [], [name], value=value) for name, value in zeros.items()]
    graph = helper.make_graph(nodes, "graph", list(shapes.values()), given)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def refuse(
    error: type[Exception], words: str, directory: Path, told: dict[str, Any] | None = None, **options: Any
) -> None:
    """`told`: engine.onnxruntime. `options`: of `deploy`."""
    engine = options.pop("engine", {}) | {"onnxruntime": FILE if told is None else told}
    with pytest.raises(error) as raised:
        open_directory(directory, engine=engine, **options)
    text = str(raised.value)
    assert "\n" not in text and all(word in text for word in words.split(" | ")), text


def test_a_file_that_is_not_there(directory: Path) -> None:
    words = "engine.onnxruntime.file onnx/model.onnx | no such file; there are model.onnx | Name one"
    refuse(ModelDirectoryError, words, directory, {"file": "onnx/model.onnx"})


def test_several_files_and_no_weights(directory: Path) -> None:
    (directory / "onnx").mkdir()
    shutil.copy(directory / "model.onnx", directory / "onnx" / "model_quantized.onnx")
    words = "no weights | model.onnx, onnx/model_quantized.onnx | Set engine.onnxruntime.file"
    refuse(ModelDirectoryError, words, directory, {})


def test_a_file_and_another_kind_of_engine(directory: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=r"no weights.* Set engine\.kind to onnxruntime to serve model\.onnx"):
        list_files(directory)


def test_neither_weights_nor_a_file(directory: Path) -> None:
    (directory / "model.onnx").unlink()
    assert deploy(directory).onnx_file is None
    refuse(
        ConfigError, "inputs and output are for an ONNX file | Set engine.onnxruntime.file", directory, {"output": "x"}
    )


def damage(change: Callable[[onnx.ModelProto], None], path: Path) -> None:
    content = onnx.load(path)
    change(content)
    onnx.save(content, path)


def test_files_that_are_none(directory: Path) -> None:
    path = directory / "model.onnx"
    whole = path.read_bytes()
    for content in (b"", b"version https://git-lfs.github.com/spec/v1", whole[: len(whole) // 2]):
        path.write_bytes(content)
        words = f"engine.onnxruntime.file: {path} cannot be loaded | copy or export it again"
        refuse(UnusableConfig, words, directory)


def test_files_that_are_newer_than_onnx_runtime(directory: Path) -> None:
    newer = "engine.onnxruntime.file | newer than ONNX Runtime | pip install --upgrade onnxruntime"
    path = directory / "model.onnx"
    damage(lambda content: setattr(content.opset_import[0], "version", 99), path)
    refuse(UnusableConfig, newer, directory)
    damage(lambda content: setattr(content, "ir_version", 99), path)
    refuse(UnusableConfig, newer, directory)


def test_external_data_that_is_missing(directory: Path) -> None:
    path = directory / "model.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="model.onnx_data", size_threshold=100)
    (directory / "model.onnx_data").unlink()
    refuse(UnusableConfig, "engine.onnxruntime.file | model.onnx_data | is to lie beside it", directory)


def test_inputs_that_nothing_is_known_of(directory: Path) -> None:
    names = ["ids", "attention_mask", "token_type_ids"]
    write_graph(directory / "model.onnx", names, ["last_hidden_state"])
    words = "engine.onnxruntime.inputs: | reads ids, which nothing is known of | inputs: {input_ids: NAME}"
    refuse(UnusableConfig, words, directory)
    told = FILE | {"inputs": {"input_ids": "tokens"}}
    refuse(UnusableConfig, "engine.onnxruntime.inputs: input_ids: | no input tokens | reads ids", directory, told)
    write_graph(directory / "model.onnx", ["input_ids"], ["last_hidden_state"])
    refuse(UnusableConfig, "reads no attention_mask | inputs: {attention_mask: NAME}", directory)


def test_inputs_of_a_decoder(directory: Path) -> None:
    write_graph(directory / "model.onnx", [*INPUTS, "past_key_values.0.key"], ["last_hidden_state"])
    refuse(UnusableConfig, "past_key_values.0.key | only encoders | Set engine.kind to planned", directory)


def test_batches_of_one_size(tmp_path: Path) -> None:
    make_base(tmp_path)
    export(load_theirs(tmp_path), tmp_path / "model.onnx", is_fixed=True)
    refuse(UnusableConfig, "input_ids as [2, 5] | both of these dimensions dynamic", tmp_path)


def test_outputs_that_are_not_found(directory: Path) -> None:
    write_graph(directory / "model.onnx", INPUTS, ["one", "two"])
    words = "engine.onnxruntime.output: | last_hidden_state or token_embeddings | one [1, 1, 32], two"
    refuse(UnusableConfig, words, directory)
    refuse(UnusableConfig, "has no output three. It has one", directory, FILE | {"output": "three"})
    one_row = "cannot compute two sequences | two is [1, 1, 32], and not of [2, 3] rows | batch and sequence dynamic"
    refuse(UnusableConfig, one_row, directory, FILE | {"output": "two"})
    write_graph(directory / "model.onnx", INPUTS, ["last_hidden_state"], width=5)
    refuse(UnusableConfig, "is 5 wide, and config.json says 32 | Name another output", directory)


def test_providers_that_are_not_installed(directory: Path) -> None:
    told = FILE | {"providers": [{"name": "TensorrtExecutionProvider"}]}
    refuse(UnusableConfig, "engine.onnxruntime.providers | pip install onnxruntime-gpu", directory, told)


def test_settings_that_do_not_go_with_a_file(directory: Path) -> None:
    precise = {"precision": "int8"}
    refuse(ConfigError, "engine.precision int8 | Set precision to auto", directory, engine=precise)
    refuse(ConfigError, "engine.precision int8 | Set precision to auto", directory, {}, engine=precise)
    refuse(ConfigError, "engine.quantization | Leave it out", directory, engine={"quantization": "x.safetensors"})
    head = {"name": "tags", "source": {"path": str(directory)}}
    refuse(ConfigError, "heads: | Leave it out", directory, heads=[head])
    with pytest.raises(ValueError, match=r"engine.onnxruntime is for kind onnxruntime, and engine.kind is planned"):
        model = {"name": "m", "source": {"path": "."}, "engine": {"onnxruntime": FILE}}
        ServerConfig.model_validate({"models": [model]})


def test_models_that_write(directory: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"intermediate_size": 64, "max_position_embeddings": 64}
    write_json(directory / "config.json", {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | sizes | more)
    refuse(ConfigError, "is for encoders, and LlamaForCausalLM writes | Set engine.kind to planned", directory)
