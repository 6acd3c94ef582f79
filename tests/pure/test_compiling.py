"""The supervisor has models compiled: once each, and whatever becomes of the process that does it."""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from models.info import ModelInfo
from runtime.compile_cache import write_choice
from runtime.precision_choice import ChosenPrecision
from server.config import ConfigError, ModelConfig, ServerConfig
from server.processes import child, compiling
from server.processes.compiling import compile_models, find_model_cache, is_measured
from server.processes.deployment import DeployedModel, Deployment, load, save

CHOSEN = ChosenPrecision(((4096, "int8"),), "balanced")
INFO = ModelInfo("BertModel", "embed", 10, 2, 16, 8)


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches"


def deploy(folder: Path, *engines: dict[str, object], task: str = "embed") -> Deployment:
    configs = [
        ModelConfig.model_validate({"name": f"m{index}", "source": {"path": str(folder)}, "engine": engine})
        for index, engine in enumerate(engines)
    ]
    info = replace(INFO, task=task)
    models = [DeployedModel(index, config, folder / "model", info) for index, config in enumerate(configs)]
    (folder / "run").mkdir(exist_ok=True)
    return Deployment(ServerConfig(models=tuple(configs)), tuple(models), folder / "run", num_cores=2)


def run(deployment: Deployment, *, stop_after_s: float | None = None) -> Deployment:
    async def choose() -> Deployment:
        stopping = asyncio.Event()
        if stop_after_s is not None:
            asyncio.get_running_loop().call_later(stop_after_s, stopping.set)
        return await asyncio.wait_for(compile_models(deployment, stopping), 20)

    return asyncio.run(choose())


@pytest.fixture(autouse=True)
def weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "estimate_trial", lambda model: 7 << 20)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was run in place of processes that compile: the first entry, which tests put in, is what runs."""
    found: list[list[str]] = []

    def build_command(module: str, arguments: list[str]) -> list[str]:
        assert module == "server.processes.compile_process"
        found.append(arguments)
        return found[0]

    monkeypatch.setattr(child, "build_command", build_command)
    return found


def fallback(problem: str) -> ChosenPrecision:
    return ChosenPrecision(((4096, "fp32"),), "balanced", problem=problem)


@pytest.mark.usefixtures("caches")
def test_one_process_for_all_replicas(tmp_path: Path, commands: list[list[str]]) -> None:
    """Engines, and those started again, open what it has written."""
    deployment = deploy(tmp_path, {"replicas": 2})
    (model,) = deployment.models
    cache = find_model_cache(deployment, model)
    cache.model.parent.mkdir(parents=True)
    write_choice(deployment.choice_path(model), CHOSEN)
    commands.append(["touch", str(cache.model)])
    compiled = run(deployment)
    assert [(model.compiled, model.chosen) for model in compiled.models] == [(cache.model, CHOSEN)]
    assert commands[1:] == [[str(tmp_path / "run"), "0", str(cache.model), str(cache.choice), "1"]]
    save(compiled)
    assert load(tmp_path / "run").models == compiled.models
    assert compiled.models[0].is_openable
    cache.model.unlink()
    assert not compiled.models[0].is_openable


@pytest.mark.usefixtures("caches")
def test_where_the_cache_cannot_be_written(tmp_path: Path, commands: list[list[str]]) -> None:
    deployment = deploy(tmp_path, {})
    path = deployment.compiled_path(deployment.models[0])
    commands.append(["touch", str(path)])
    assert [model.compiled for model in run(deployment).models] == [path]


@pytest.mark.usefixtures("caches")
def test_what_an_earlier_start_has_made_needs_no_process(tmp_path: Path, commands: list[list[str]]) -> None:
    deployment = deploy(tmp_path, {}, {"precision": "auto_per_bucket"})
    for model in deployment.models:
        cache = find_model_cache(deployment, model)
        write_choice(cache.choice, CHOSEN)
        cache.model.touch()
    assert [model.chosen for model in run(deployment).models] == [CHOSEN] * 2
    assert not commands
    threads = replace(deployment.models[0], threads=7)
    assert find_model_cache(deployment, threads) != find_model_cache(deployment, deployment.models[0])


@pytest.mark.usefixtures("commands", "caches")
def test_what_computes_nothing_or_op_by_op_is_not_compiled(tmp_path: Path) -> None:
    engines = ({"kind": "null"}, {"kind": "reference"})
    assert run(deploy(tmp_path, *engines)) == deploy(tmp_path, *engines)


def test_only_encoders_on_cpus_that_leave_it_open_are_measured(tmp_path: Path) -> None:
    assert all(map(is_measured, deploy(tmp_path, {}, {"precision": "auto_per_bucket"}, {"inline": True}).models))
    assert not any(map(is_measured, deploy(tmp_path, {"precision": "fp32"}, {"device": "cuda"}).models))
    assert not is_measured(deploy(tmp_path, {}, task="generate").models[0])


@pytest.mark.usefixtures("caches")
def test_generators_that_cannot_be_compiled_ahead_are_by_their_engines(
    tmp_path: Path, commands: list[list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    commands.append(["sh", "-c", "exit 3"])
    (model,) = run(deploy(tmp_path, {}, task="generate")).models
    assert (model.compiled, model.chosen) == (None, None)
    assert "each engine of m0 compiles it for itself, because the process that compiles ended" in caplog.text


@pytest.mark.usefixtures("caches")
@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["sh", "-c", "exit 3"], "the process that compiles ended with status 3"),
        (["sh", "-c", "kill -9 $$"], "the process that compiles ended with status -9"),
        (["true"], "the process that compiles ended with status 0"),
        (["/nowhere/python"], "the process that compiles could not be started: No such file or directory"),
    ],
)
def test_a_process_that_crashes_leaves_the_exact_precision(
    tmp_path: Path, commands: list[list[str]], caplog: pytest.LogCaptureFixture, command: list[str], problem: str
) -> None:
    commands.append(command)
    deployment = deploy(tmp_path, {})
    with caplog.at_level(logging.WARNING, "padless"):
        (model,) = run(deployment).models
    assert model.chosen == fallback(problem)
    assert caplog.messages == [f"m0 runs in fp32, the exact precision, because {problem}"]
    assert str(model.chosen) == f"fp32, the exact one, because {problem}"
    assert not find_model_cache(deployment, model).model.exists()


@pytest.mark.usefixtures("caches")
def test_a_process_that_takes_too_long_is_ended(
    tmp_path: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "PATIENCE_S", 0.2)
    commands.append(["sleep", "60"])
    (model,) = run(deploy(tmp_path, {})).models
    assert model.chosen == fallback("the process that compiles had not ended after 0 s")


@pytest.mark.usefixtures("caches")
def test_a_process_whose_loop_is_stuck_is_ended(
    tmp_path: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has beaten once, and then no more."""
    monkeypatch.setattr(child, "HEARTBEAT_PATIENCE_S", 0.1)
    commands.append(["sh", "-c", "echo >&0; exec sleep 60"])
    (model,) = run(deploy(tmp_path, {})).models
    assert model.chosen == fallback("the process that compiles said nothing for 6 s")


@pytest.mark.usefixtures("caches")
def test_without_the_memory_nothing_is_measured(
    tmp_path: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "find_cpu_bytes", lambda: 6 << 20)
    (model,) = run(deploy(tmp_path, {})).models
    assert model.chosen == fallback("measuring takes 7 MB and there are 6") and not commands


@pytest.mark.usefixtures("caches")
def test_a_model_that_cannot_be_used_ends_the_start(tmp_path: Path, commands: list[list[str]]) -> None:
    """The process has said why in a line of its own; the exact precision could not be used either."""
    commands.append(["sh", "-c", "exit 2"])
    with pytest.raises(ConfigError, match="model m0 cannot be started; the reason is above"):
        run(deploy(tmp_path, {}))


@pytest.mark.usefixtures("caches")
def test_told_to_stop_while_something_is_measured(
    tmp_path: Path, commands: list[list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    commands.append(["sleep", "60"])
    run(deploy(tmp_path, {}, {}), stop_after_s=0.2)
    assert len(commands) == 2 and not caplog.messages
