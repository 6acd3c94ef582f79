"""Configuration files: those there are load; mistakes are named together with the way out."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime.config import CUDA_PRECISIONS
from server.config import ConfigError, ModelConfig, ServerConfig
from server.config_file import dump_config, load_config
from server.tasks.registry import HEADS

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("**/*.y*ml"))


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write one model's section, and others, into a file."""

    def write_file(model: dict[str, Any] | None = None, **sections: Any) -> Path:
        base = {"name": "m", "source": {"path": "x"}}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({"models": [base | (model or {})]} | sections), encoding="utf-8")
        return path

    return write_file


def message_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_there_are_configs() -> None:
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_file_loads_and_survives_being_printed(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    printed = tmp_path / "printed.yaml"
    printed.write_text(dump_config(config), encoding="utf-8")
    assert load_config(printed) == config


def test_effective_config_spells_every_default_out(write: Any) -> None:
    effective = yaml.safe_load(dump_config(load_config(write())))
    assert set(effective["server"]) == set(type(ServerConfig.model_fields["server"].default).model_fields)
    assert effective["models"][0]["limits"]["max_batch_tokens"] == 4096
    assert effective["models"][0]["engine"]["precision"] == "auto"


@pytest.mark.parametrize(
    ("model", "sections", "where", "nearest"),
    [
        ({"limits": {"max_batch_token": 1}}, {}, "models.0.limits.max_batch_token", "max_batch_tokens"),
        ({"engine": {"presision": "fp32"}}, {}, "models.0.engine.presision", "precision"),
        ({"source": {"path": "x", "packge": "y"}}, {}, "models.0.source.packge", "package"),
        ({"normalise": True}, {}, "models.0.normalise", "normalize"),
        ({"speculative": {"method": "ngram", "tokens": 4}}, {}, "models.0.speculative.tokens", "num_tokens"),
        ({"speculative": {"draft": {"pth": "x"}}}, {}, "models.0.speculative.draft.pth", "path"),
        ({}, {"server": {"prot": 1}}, "server.prot", "port"),
        ({}, {"sever": {}}, "sever", "server"),
    ],
)
def test_unknown_key_suggests_the_nearest(
    write: Any, model: dict[str, Any], sections: dict[str, Any], where: str, nearest: str
) -> None:
    assert f"{where}: unknown key; did you mean {nearest!r}?" in message_of(write(model, **sections))


def test_unknown_key_like_no_other_lists_those_there_are(write: Any) -> None:
    message = message_of(write({"source": {"path": "x", "zzzzzzz": 1}}))
    assert "models.0.source.zzzzzzz: unknown key; the keys here are path, package, hub" in message


@pytest.mark.parametrize("task", ["classify", "token_classify", "question_answering", "fill_mask", "generate"])
@pytest.mark.parametrize("options", [{"pooling": "cls"}, {"normalize": True}])
def test_what_is_for_embeddings_is_refused_by_other_tasks(task: str, options: dict[str, Any]) -> None:
    """Once the checkpoint has said which task is its own, if the file does not."""
    model = ModelConfig.model_validate({"name": "m", "source": {"path": "x"}, **options})
    with pytest.raises(ConfigError, match=r"model m: pooling and normalize are for embeddings.*Leave them out"):
        HEADS[task].check_config(model)
    HEADS["embed"].check_config(model)


@pytest.mark.parametrize(
    ("model", "sections", "words"),
    [
        (
            {"limits": {"max_client_batch_size": 100, "max_concurrent_requests": 10}},
            {},
            ["limits.max_client_batch_size (100)", "Lower max_client_batch_size or raise max_concurrent_requests"],
        ),
        ({"engine": {"precision": "fp16"}}, {}, ["engine.precision fp16", "Set precision to bf16, fp32 or auto"]),
        ({"engine": {"precision": "fp8"}}, {}, ["engine.precision fp8", "or device to cuda"]),
        ({"engine": {"precision": "int4_weights"}}, {}, ["engine.precision int4_weights", "or device to cuda"]),
        *(
            (
                {"engine": {"kind": "onnxruntime", "precision": precision}},
                {},
                [f"onnxruntime has no operators for {precision}", "Set engine.precision to fp32, int8 or auto"],
            )
            for precision in ("bf16", *CUDA_PRECISIONS)
        ),
        ({"engine": {"kind": "null", "precision": "fp8"}}, {}, ["engine.kind null", "Leave engine.precision out"]),
        ({"engine": {"kind": "reference", "precision": "fp8"}}, {}, ["fp32 only", "Set precision to fp32 or auto"]),
        ({"engine": {"kind": "null", "memory_cap_mb": 5}}, {}, ["engine.memory_cap_mb", "Leave it out"]),
        ({"engine": {"kind": "cuda_graphs"}}, {}, ["engine.kind cuda_graphs needs", "Set device to cuda"]),
        (
            {"engine": {"quantization": "a.int8", "precision": "fp32"}},
            {},
            ["engine.quantization", "precision is fp32", "Set precision to int8"],
        ),
        (
            {"engine": {"min_cosine": 0.999}},
            {},
            ["models.0.engine: min_cosine", "set accuracy to strict, balanced or fast"],
        ),
        ({"engine": {"precision": "auto_per_bucket", "device": "cuda"}}, {}, ["auto_per_bucket", "set device to cpu"]),
        ({"engine": {"cpu_kernels": "avx2", "device": "cuda"}}, {}, ["engine.cpu_kernels", "leave cpu_kernels out"]),
        ({"engine": {"null_step_ms": 5}}, {}, ["engine.null_step_", "engine.kind is planned", "Leave it out"]),
        ({"engine": {"kind": "null", "precision": "bf16"}}, {}, ["engine.kind null", "Leave engine.precision out"]),
        ({"engine": {"kind": "reference", "precision": "bf16"}}, {}, ["fp32 only", "Set precision to fp32 or auto"]),
        (
            {"engine": {"inline": True, "replicas": 2}},
            {},
            ["engine.inline", "Set replicas to 1 or inline to false"],
        ),
        ({"engine": {"devices": [0]}}, {}, ["engine.devices", "device is cpu", "Set device to cuda"]),
        (
            {"engine": {"kind": "onnxruntime", "devices": [0]}},
            {},
            ["engine.devices", "as device_id", "leave devices out"],
        ),
        ({"engine": {"device": "cuda", "devices": [0, 1, 0]}}, {}, ["names 0 twice", "Name each device once"]),
        (
            {"engine": {"device": "cuda", "devices": [0, 2], "replicas": 5}},
            {},
            ["engine.replicas is 5", "engine.devices names 2", "Set replicas to 4"],
        ),
        ({"engine": {"device": "cuda", "devices": [0, 2], "replicas": 1}}, {}, ["Set replicas to 2"]),
        (
            {"engine": {"device": "cuda", "devices": [1], "inline": True}},
            {},
            ["engine.devices", "engine.inline", "set inline to false"],
        ),
        (
            {"engine": {"device": "cuda", "devices": [0, 1], "inline": True}},
            {},
            ["engine.devices", "engine.inline", "set inline to false"],
        ),
        ({"engine": {"device": "cuda", "devices": [*range(65)]}}, {}, ["engine.replicas", "less than or equal to 64"]),
        (
            {"engine": {"inline": True}},
            {"server": {"http_workers": 2}},
            ["m has engine.inline", "Set server.http_workers to 1 or inline to false"],
        ),
        ({"source": {"path": "x", "hub": "y"}}, {}, ["models.0.source", "exactly one of path, package, hub"]),
        ({"source": {}}, {}, ["models.0.source", "has none"]),
        ({"source": {"package": "module"}}, {}, ["models.0.source", "'module:folder'"]),
        (
            {},
            {"models": [{"name": "a", "source": {"path": "x"}}] * 2},
            ["two have the name 'a'", "Give each its own name"],
        ),
    ],
)
def test_contradiction_names_the_key_and_the_remedy(
    write: Any, model: dict[str, Any], sections: dict[str, Any], words: list[str]
) -> None:
    message = message_of(write(model, **sections))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("model", "sections", "where"),
    [
        ({"limits": {"max_batch_tokens": 0}}, {}, "models.0.limits.max_batch_tokens"),
        ({"engine": {"precision": "fp4"}}, {}, "models.0.engine.precision"),
        ({"engine": {"accuracy": "exact"}}, {}, "models.0.engine.accuracy"),
        ({"engine": {"replicas": "many"}}, {}, "models.0.engine.replicas"),
        ({"engine": {"devices": [-1]}}, {}, "models.0.engine.devices.0"),
        ({"name": ""}, {}, "models.0.name"),
        ({}, {"server": {"port": 70_000}}, "server.port"),
    ],
)
def test_wrong_value_is_shown_with_its_key(
    write: Any, model: dict[str, Any], sections: dict[str, Any], where: str
) -> None:
    message = message_of(write(model, **sections))
    assert f"{where}: " in message
    assert "(got " in message


def test_all_mistakes_are_told_at_once(write: Any) -> None:
    """And nothing besides: what other keys' defaults depend on is told where it is wrong."""
    message = message_of(write({"nmae": 1, "limits": {"max_wait_ms": -1}, "engine": {"devices": [-1]}}))
    assert len(message.splitlines()) == 3


def test_replicas_are_one_on_each_device(write: Any) -> None:
    """Where nobody says how many; those who do are told apart by turns."""
    engine = {"device": "cuda", "devices": [3, 1]}
    first, second = (
        load_config(write({"engine": each})).models[0].engine for each in (engine, {**engine, "replicas": 4})
    )
    assert (first.replicas, second.replicas) == (2, 4)
    assert first.device_names == ("cuda:3", "cuda:1")
    assert [second.keep_device(replica).device_names for replica in range(4)] == [("cuda:3",), ("cuda:1",)] * 2
    assert load_config(write({"engine": {"device": "cuda"}})).models[0].engine.device_names == ("cuda:0",)


def test_file_without_a_model(write: Any) -> None:
    assert "models: there is none. Add one" in message_of(write(models=[]))


def test_missing_name_is_told(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("models: [{source: {path: x}}]")
    assert message_of(path) == f"{path}: models.0.name: is missing"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            "models: [{name: a, source: ./here}]",
            "models.0.source: must be a mapping, with keys out of path, package, hub",
        ),
        ("models: {name: a, source: {path: x}}", "models: must be a list (got"),
        ("models: [a]", "models.0: must be a mapping, with keys out of name, source, task"),
        (
            "server: 8000\nmodels: [{name: a, source: {path: x}}]",
            "server: must be a mapping, with keys out of host, port",
        ),
    ],
)
def test_value_of_another_shape_is_told_in_words_of_yaml(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    message = message_of(path)
    assert message.startswith(f"{path}: {problem}") and "(got " in message


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"- 1", "mapping"), (b"models: [", "not valid YAML"), (b"\xff\xfe\x00", "not valid YAML"), (b"", "mapping")],
)
def test_file_that_is_no_configuration(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    message = message_of(path)
    assert word in message
    assert str(path) in message


def test_file_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in message_of(tmp_path / "none.yaml")


class TestOverrides:
    def test_full_path(self, write: Any) -> None:
        config = load_config(write(), ["server.port=9000", "models.0.engine.threads=3"])
        assert config.server.port == 9000
        assert config.models[0].engine.threads == 3

    def test_only_model_needs_no_prefix(self, write: Any) -> None:
        config = load_config(write(), ["engine.precision=fp32", "limits.max_input_tokens=null", "name=other"])
        assert config.models[0].engine.precision == "fp32"
        assert config.models[0].limits.max_input_tokens is None
        assert config.models[0].name == "other"

    def test_file_value_is_replaced_and_its_neighbours_stay(self, write: Any) -> None:
        path = write({"limits": {"max_batch_tokens": 10, "max_batch_requests": 5}})
        limits = load_config(path, ["limits.max_batch_tokens=20"]).models[0].limits
        assert (limits.max_batch_tokens, limits.max_batch_requests) == (20, 5)

    @pytest.mark.parametrize(
        ("override", "words"),
        [
            ("server.port", "must be written as key=value"),
            ("models.1.name=x", "no entry '1'; entries are 0 to 0"),
            ("models.x.name=x", "no entry 'x'"),
            ("name.first=x", "models.0.name has no keys"),
            ("name.first.second=x", "'first' is below a plain value"),
            ("models.0=x", "has no keys"),
            ("engine.threads=[", "not valid YAML"),
            ("engine.thread=1", "did you mean 'threads'"),
        ],
    )
    def test_mistakes_are_named(self, write: Any, override: str, words: str) -> None:
        message = message_of(write(), override)
        assert words in message
        assert override.partition("=")[0].rpartition(".")[2] in message

    def test_without_a_number_all_models_are_meant(self, write: Any) -> None:
        path = write(models=[{"name": name, "source": {"path": "x"}} for name in "abc"])
        config = load_config(path, ["engine.threads=3", "models.1.engine.threads=1", "server.port=9000"])
        assert [model.engine.threads for model in config.models] == [3, 1, 3]
        assert "models: two have the name 'x'" in message_of(path, "name=x")
        assert "models.2.engine.thread: unknown key; did you mean 'threads'?" in message_of(path, "engine.thread=1")

    @pytest.mark.parametrize("models", [[], None, {"a": 1}])
    def test_key_of_a_model_where_there_is_none(self, write: Any, models: object) -> None:
        assert "'engine' is a key of models, and the file has none" in message_of(
            write(models=models), "engine.threads=1"
        )

    @pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
    def test_what_images_set_fits_every_file(self, path: Path) -> None:
        config = load_config(path, ["server.host=0.0.0.0", "server.port=8000"])
        assert (config.server.host, config.server.port) == ("0.0.0.0", 8000)


class TestShipped:
    """Files that come with Padless have names, wherever one is."""

    @pytest.mark.parametrize("name", ["minilm", "minilm.yaml"])
    def test_name(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert load_config(Path(name)).models[0].name == "all-MiniLM-L6-v2"

    def test_file_that_is_there_comes_first(self, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write().rename(tmp_path / "minilm.yaml")
        monkeypatch.chdir(tmp_path)
        assert load_config(Path("minilm.yaml")).models[0].name == "m"

    @pytest.mark.parametrize("path", ["miniln", "minilm.json", "elsewhere/minilm.yaml", "../configs/minilm"])
    def test_others_are_not_found_and_the_names_are_told(
        self, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        message = message_of(Path(path))
        assert f"{path}: No such file" in message and "chat, chat-gpu, hub, minilm, minilm-gpu" in message


def test_configuration_cannot_be_changed(write: Any) -> None:
    config = load_config(write())
    with pytest.raises(ValueError, match="frozen"):
        config.server.port = 1
