"""A server with the null engine, shared by the tests that leave it as they found it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer, make_model_directory, start_server, write_config

StartServer = Callable[..., RunningServer]


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
