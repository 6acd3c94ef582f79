"""`precision: auto` from the outside: what was chosen is kept, by an engine started again and by the next start."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer, start_server

from tests.e2e.small_bert import make_small_bert


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Of two replicas of a small model. torch's kernels: others would be compiled into the cache, which is empty."""
    directory = make_small_bert(tmp_path / "model")
    engine = {"replicas": 2, "threads": 1, "cpu_kernels": "torch", "warmup": False}
    model = {"name": "m", "source": {"path": str(directory)}, "engine": engine, "limits": {"max_batch_tokens": 64}}
    path = tmp_path / "auto.yaml"
    path.write_text(json.dumps({"server": {"port": 0, "canary_interval_s": 0.5}, "models": [model]}))
    return path


def read_chosen(server: RunningServer) -> list[dict[str, Any]]:
    """Of each replica."""
    (model,) = json.loads(server.get("/info")[1])["models"]
    infos = [replica["info"] for replica in model["replicas"]]
    assert all(info["precision"] == info["chosen"]["by_tokens"][-1][1] for info in infos)
    return [info["chosen"] for info in infos]


@pytest.mark.slow
def test_kept_by_an_engine_that_is_started_again_and_by_the_next_start(config: Path, tmp_path: Path) -> None:
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    server = start_server(config, environment=cache)
    try:
        server.wait_ready()
        chosen, _ = read_chosen(server)
        _, killed = server.children("server.processes.engine_process")
        os.kill(killed, signal.SIGKILL)
        until_s = time.monotonic() + 60
        while killed in server.children("server.processes.engine_process") or server.get("/ready")[0] != 200:
            assert time.monotonic() < until_s, server.log
            time.sleep(0.05)
        assert read_chosen(server) == [chosen, chosen]
        assert server.log.count("judging precisions") == 1
    finally:
        server.stop()
    server = start_server(config, environment=cache)
    try:
        server.wait_ready()
        assert read_chosen(server) == [chosen, chosen]
        assert "judging precisions" not in server.log
    finally:
        server.stop()
