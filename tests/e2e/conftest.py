"""Servers with the null engine, and the command line without a process of its own."""

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from running_server import RunningServer, make_model_directory, start_server, write_config

from server.__main__ import main

StartServer = Callable[..., RunningServer]


class Ended(NamedTuple):
    """A command that has ended: its exit status, and what it has printed."""

    status: object
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def null_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_directory(tmp_path_factory.mktemp("models") / "null")


@pytest.fixture
def start(null_model: Path, tmp_path: Path) -> Iterator[StartServer]:
    """`start(server={...}, engine={...}, limits={...})`; stopped at the end of the test if it still runs."""
    started: list[RunningServer] = []

    def start_one(**sections: dict[str, Any]) -> RunningServer:
        server = start_server(write_config(tmp_path / f"{len(started)}.yaml", null_model, **sections))
        started.append(server)
        server.wait_ready()
        return server

    yield start_one
    for server in started:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture
def padless(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """`padless("config", "minilm", stdin="")`: a command that starts nothing, in this process."""

    def run(*words: str, stdin: str = "") -> Ended:
        monkeypatch.setattr(sys, "argv", ["padless", *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(ended.value.code, *capsys.readouterr())

    return run
