"""One server for all clients, with a tiny model for each task, and the environments that clients run in."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.clients.client_models import make_colbert, make_models
from tests.clients.environments import FOLDER, InstallError, prepare_environment, run_script
from tests.e2e.running_server import RunningServer, start_server

ENGINE = {"kind": "reference", "inline": True, "threads": 1, "warmup": False}
"""Nothing is compiled, and torch is imported once: what clients get depends on neither."""

TASKS = {"splade": "sparse", "bert": "fill_mask"}
"""Of models whose directories do not say what they are for."""
PRINTED_S = 30.0
CLIENTS, MTEB = "requirements.txt", "requirements-mteb.txt"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("clients")
    yield from serve(folder, make_models(folder))


@pytest.fixture(scope="session")
def colbert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of its own: whoever asks for tokens' vectors without naming a model could mean any."""
    folder = tmp_path_factory.mktemp("colbert")
    make_colbert(folder / "colbert")
    yield from serve(folder, {"colbert": folder / "colbert"})


def serve(folder: Path, directories: Mapping[str, Path]) -> Iterator[RunningServer]:
    models = [
        {"name": name, "source": {"path": str(path)}, "engine": ENGINE, "task": TASKS.get(name, "auto")}
        for name, path in directories.items()
    ]
    config = folder / "clients.yaml"
    config.write_text(json.dumps({"server": {"port": 0, "grpc_port": 0}, "models": models}))
    server = start_server(config)
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def grpc_address(server: RunningServer) -> str:
    """HOST:PORT, which are printed once all is ready."""
    until_s = time.monotonic() + PRINTED_S
    while (found := re.search(r"gRPC on port (\d+)", server.log)) is None:
        assert time.monotonic() < until_s, server.log
        time.sleep(0.05)
    return f"127.0.0.1:{found[1]}"


@pytest.fixture(scope="session")
def python() -> Path:
    """Of the environment that has all clients but mteb."""
    return find_python(CLIENTS)


@pytest.fixture(scope="session")
def mteb_python() -> Path:
    """mteb brings torch along."""
    return find_python(MTEB)


@pytest.fixture(scope="session", params=[CLIENTS, MTEB])
def any_python(request: pytest.FixtureRequest) -> Path:
    return find_python(request.param)


def find_python(requirements: str) -> Path:
    try:
        return prepare_environment(FOLDER / requirements)
    except InstallError as error:
        pytest.skip(f"the clients cannot be installed: {error}")


@pytest.fixture
def run_client(server: RunningServer, tmp_path: Path) -> Callable[[Path, str, Any], Any]:
    """`run_client(python, "openai_client.py", GIVEN)`: what the script prints."""
    return lambda python, script, given: run_script(python, script, server.url, given, tmp_path)
