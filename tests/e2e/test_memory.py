"""One plan for the memory of a server: refused where it does not fit, and kept by an engine that is started again."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from running_server import RunningServer, make_model_directory, start_command, start_server
from transformers import LlamaConfig, LlamaForCausalLM

SHRINKING = """
import sys
from server.__main__ import main
from server.processes import memory
sizes = iter([{0} << 20, 1, 1])
memory.find_cpu_bytes = lambda: next(sizes)
main()
"""
"""A server on a machine that has so many MB when it is first asked, and then none."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A block of its cache takes 64 KiB, and its weights less than 2 MB."""
    directory = make_model_directory(tmp_path_factory.mktemp("models") / "llama")
    config = LlamaConfig(
        vocab_size=62,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=32,
        intermediate_size=32,
        max_position_embeddings=1024,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def write_models(path: Path, llama: Path, *engines: dict[str, object]) -> Path:
    common = {"source": {"path": str(llama)}, "limits": {"max_batch_tokens": 64, "max_batch_requests": 64}}
    models = [
        {"name": f"llama-{index}", "engine": {"precision": "fp32", "warmup": False, **engine}, **common}
        for index, engine in enumerate(engines)
    ]
    path.write_text(json.dumps({"server": {"port": 0, "canary_interval_s": 0.5}, "models": models}))
    return path


def test_budgets_that_cannot_fit_are_refused_before_anything_starts(llama: Path, tmp_path: Path) -> None:
    budget = {"kv_cache": {"budget_mb": 4e9}}
    server = start_server(write_models(tmp_path / "large.yaml", llama, budget, {"replicas": 2}))
    assert server.process.wait(60) == 2
    [line] = server.log.splitlines()
    assert line.startswith("padless: engine.device cpu has ")
    assert "llama-0 1 x 4000000000.0 MB (engine.kv_cache.budget_mb), llama-1 1 x " in line
    assert "Lower engine.kv_cache.budget_mb of llama-0 or engine.replicas" in line


def count_blocks(server: RunningServer) -> list[int]:
    models = json.loads(server.get("/info")[1])["models"]
    return [each["info"]["num_blocks"] for model in models for each in model["replicas"]]


def has_replaced(server: RunningServer, killed: int) -> bool:
    engines = server.children("server.processes.engine_process")
    return len(engines) == 2 and killed not in engines and server.get("/ready")[0] == 200


@pytest.mark.slow
def test_an_engine_that_is_started_again_has_as_many_blocks(llama: Path, tmp_path: Path) -> None:
    """Two replicas, of 40 MB: neither the other's cache nor what has become of the machine since counts."""
    config = write_models(tmp_path / "two.yaml", llama, {"replicas": 2})
    command = [sys.executable, "-c", SHRINKING.format(40), "--config", str(config)]
    server = start_command(command, tmp_path / "log")
    try:
        server.wait_ready()
        before = count_blocks(server)
        assert before[0] == before[1] and 65 < before[0] < 10 * 16
        _, killed = server.children("server.processes.engine_process")
        os.kill(killed, signal.SIGKILL)
        until_s = time.monotonic() + 60
        while not has_replaced(server, killed):
            assert time.monotonic() < until_s, server.log
            time.sleep(0.05)
        assert count_blocks(server) == before
    finally:
        server.stop()
