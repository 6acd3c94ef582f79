"""A model on the command line instead of a file."""

from pathlib import Path

import pytest

from server.__main__ import build_parser, with_default_command
from server.config import ConfigError
from server.processes.one_model import configure_model


def test_a_directory_by_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "org")
    for given, name in (("tiny", "tiny"), (str(tmp_path / "org/tiny"), "tiny"), (".", "org"), ("../org/tiny/", "tiny")):
        (model,) = configure_model(given).models
        assert model.name == name
        assert model.source.path is not None and Path(model.source.path).is_absolute()
        assert Path(model.source.path).resolve() == (tmp_path / "org" if given == "." else tmp_path / "org" / "tiny")
    monkeypatch.chdir(tmp_path)
    assert configure_model("org/tiny").models[0].source.hub is None, "what is there wins over the hub"


@pytest.mark.parametrize(
    ("given", "name"), [("BAAI/bge-small-en-v1.5", "BAAI/bge-small-en-v1.5"), ("org/tiny@refs/pr/1", "org/tiny")]
)
def test_a_name_on_a_hub(given: str, name: str) -> None:
    (model,) = configure_model(given).models
    assert (model.name, model.source.hub) == (name, given)
    assert (model.task, model.pooling, model.engine.precision) == ("auto", "auto", "auto")


def test_its_name_and_single_values_can_be_chosen() -> None:
    config = configure_model("org/tiny", "mine", ["engine.threads=1", "server.port=9", "limits.truncation=right"])
    (model,) = config.models
    assert (model.name, model.engine.threads, model.limits.truncation) == ("mine", 1, "right")
    assert config.server.port == 9


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("nowhere", "nowhere: there is no such directory. Name one that is there, or a model on a hub"),
        ("./org/tiny", "there is no such directory"),
        ("/org/tiny", "there is no such directory"),
        ("a/b/c", "there is no such directory"),
        ("minilm", "served with --config minilm"),
        (__file__, "is no directory. A configuration is read with --config"),
    ],
)
def test_what_is_no_model(given: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        configure_model(given)


def test_a_name_that_is_empty_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^org/tiny: models\.0\.name: String should have at least 1 character"):
        configure_model("org/tiny", "")


def test_wrong_overrides_are_told_with_the_model() -> None:
    with pytest.raises(
        ConfigError, match=r"^org/tiny: models.0.limits.max_batch_token: .*did you mean 'max_batch_tokens'"
    ):
        configure_model("org/tiny", overrides=["limits.max_batch_token=5"])


def test_the_command_may_be_left_out(tmp_path: Path) -> None:
    for words in (["--config", "a.yaml"], [str(tmp_path), "--port", "0"], ["org/name"]):
        assert with_default_command(words) == ["serve", *words]
    for words in (["serve", "x"], ["config", "a.yaml"], ["--help"], ["--version"], ["srve"], []):
        assert with_default_command(words) == words


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("padless 0.")
