"""The supervisor's own rules, with children that only sleep."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from models.info import ModelInfo
from runtime.config import EngineConfig
from runtime.engine import EngineInfo
from server.config import ConfigError, HttpConfig, ModelConfig, ServerConfig, SourceConfig
from server.processes import child, launch, run_dir
from server.processes.announcement import describe_model
from server.processes.deployment import DeployedModel, Deployment
from server.processes.launch import Supervisor
from server.processes.listeners import Listeners, open_listeners
from server.processes.startup import START_ANEW
from server.processes.visible_devices import VARIABLE

MODEL = ModelConfig(name="embedder", source=SourceConfig(path="unused"))
INFO = ModelInfo("BertModel", "embed", 10, 2, 16, 8)
CONFIG = ServerConfig(server=HttpConfig(port=0), models=(MODEL,))


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    opened = open_listeners(CONFIG.server)
    yield opened
    opened.close()


def test_told_to_stop_while_a_child_is_being_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listeners: Listeners
) -> None:
    monkeypatch.setattr(child, "build_command", lambda module, arguments: ["sleep", "60"])
    start = asyncio.create_subprocess_exec

    async def run() -> int:
        supervisor = Supervisor(Deployment(CONFIG, (), tmp_path), listeners, "")

        async def start_slowly(*command: str, **options: Any) -> asyncio.subprocess.Process:
            process = await start(*command, **options)
            supervisor.stopping.set()
            await asyncio.sleep(0.05)
            return process

        monkeypatch.setattr(asyncio, "create_subprocess_exec", start_slowly)
        return await asyncio.wait_for(supervisor.run(), 10)

    assert asyncio.run(run()) == 0


def test_an_engine_waits_for_what_is_compiled_and_starts_anew_where_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listeners: Listeners, caplog: pytest.LogCaptureFixture
) -> None:
    """Its first process ends when it is told that all is settled; nobody calls that a crash."""
    commands = {launch.OPENING: ["sh", "-c", f"head -c 1; exit {START_ANEW}"], launch.BUILDING: ["sleep", "60"]}
    started: list[tuple[str, str]] = []

    def build_command(module: str, arguments: list[str]) -> list[str]:
        if module in commands:
            started.append((module, arguments[-1]))
        return commands.get(module, ["sh", "-c", "echo >&0; exec sleep 60"])

    monkeypatch.setattr(child, "build_command", build_command)

    async def run() -> int:
        supervisor = Supervisor(Deployment(CONFIG, (DeployedModel(0, MODEL, tmp_path, INFO),), tmp_path), listeners, "")

        async def compile_in_vain(deployment: Deployment, stopping: asyncio.Event) -> Deployment:
            while not started:
                await asyncio.sleep(0.01)
            return deployment

        async def stop_in_the_end() -> None:
            while len(started) < 2:
                await asyncio.sleep(0.01)
            supervisor.stopping.set()

        monkeypatch.setattr(launch, "compile_models", compile_in_vain)
        end = asyncio.create_task(stop_in_the_end())
        status = await asyncio.wait_for(supervisor.run(), 10)
        await end
        return status

    assert asyncio.run(run()) == 0
    assert started == [(launch.OPENING, "1"), (launch.BUILDING, "1")]
    assert "starting it again" not in caplog.text


def test_no_more_children_import_at_a_time_than_there_are_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listeners: Listeners
) -> None:
    started: list[str] = []

    async def keep(self: Supervisor, each: child.Child) -> None:
        started.append(each.name)

    monkeypatch.setattr(Supervisor, "keep", keep)

    async def run() -> None:
        supervisor = Supervisor(Deployment(CONFIG, (), tmp_path), listeners, "")
        children = [child.Child(name, "module", []) for name in "abc"]
        starting = asyncio.create_task(supervisor.start_in_turn(children, 2))
        await asyncio.sleep(0.05)
        assert started == ["a", "b"]
        children[1].heard.set()
        await asyncio.sleep(0.05)
        assert started == ["a", "b", "c"]
        for each in children:
            each.heard.set()
        await asyncio.wait_for(starting, 1)
        await supervisor.start_in_turn(children, 2)
        assert started == ["a", "b", "c"]

    asyncio.run(run())


def test_no_place_for_sockets_is_the_operators_business(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line on the terminal, and no traceback."""
    monkeypatch.setattr(run_dir, "is_usable", lambda path: False)
    with pytest.raises(ConfigError, match="set XDG_RUNTIME_DIR"), run_dir.make_run_dir():
        pass


def test_no_place_for_temporary_files_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container whose root is read-only."""

    def find_none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(run_dir.tempfile, "gettempdir", find_none)
    with pytest.raises(ConfigError, match="set TMPDIR to one, or mount one on /tmp"), run_dir.make_run_dir():
        pass


def test_announced_once_whoever_answers_has_heard_of_the_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listeners: Listeners, capsys: pytest.CaptureFixture[str]
) -> None:
    """One HTTP process is ready, and another one, which has just started, is asked."""
    known = asdict(EngineInfo("null", "none", "", "cpu", 1, ()))
    answers = iter([None, known])

    def fetch(url: str, key: str = "") -> bytes:
        return json.dumps({"models": [{"replicas": [{"info": next(answers)}]}]}).encode() if "info" in url else b"{}"

    monkeypatch.setattr(launch, "fetch", fetch)
    model = DeployedModel(0, MODEL, tmp_path, INFO)

    async def announce() -> None:
        await Supervisor(Deployment(CONFIG, (model,), tmp_path), listeners, "").announce()

    asyncio.run(announce())
    printed = capsys.readouterr().out
    assert "embedder: BertModel" in printed and "Ready after" in printed


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, ["2", "0", "2", "0"]),
        ("7, GPU-8f,5", ["5", "7", "5", "7"]),
        ("7", ["", "7", "", "7"]),
        ("", ["", "", "", ""]),
    ],
)
def test_each_engine_sees_its_own_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listeners: Listeners, visible: str | None, seen: list[str]
) -> None:
    """Replicas take turns; where somebody has chosen devices for the server, among those and no others."""
    monkeypatch.delenv(VARIABLE, raising=False) if visible is None else monkeypatch.setenv(VARIABLE, visible)
    engine = EngineConfig(device="cuda", devices=(2, 0), replicas=4)
    model = DeployedModel(0, MODEL.model_copy(update={"engine": engine}), tmp_path, INFO)
    on_cpu = DeployedModel(1, MODEL, tmp_path, INFO)
    children = Supervisor(Deployment(CONFIG, (model, on_cpu), tmp_path), listeners, "").engines
    assert [child.variables for child in children] == [*({VARIABLE: name} for name in seen), {}]


def test_the_start_says_where_replicas_compute(tmp_path: Path) -> None:
    engine = EngineConfig(kind="cuda_graphs", device="cuda", devices=(2, 0))
    model = DeployedModel(0, MODEL.model_copy(update={"engine": engine}), tmp_path, INFO)
    info = EngineInfo("cuda_graphs", "bf16", "auto", "cuda:2", 1, (), 5 * 2**20, 2 * 2**20, graph_bytes=9 * 2**20)
    info = replace(info, counter_bytes=3 * 2**20)
    told = describe_model(model, info)
    assert "on cuda:2, cuda:0 in turn, 2 replicas" in told
    assert "weights 5.0 MB + activations 2.0 MB at the largest batch (0 tokens) + CUDA graphs 9.0 MB" in told
    assert "9.0 MB + counters of penalties 3.0 MB = 19.0 MB per replica" in told
