"""The supervisor and its processes, with the null engine: start, share, crash, recover, drain, end."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from running_server import RunningServer, make_model_directory, start_server, write_config
from safetensors.numpy import save_file

from models.info import ModelDirectoryError
from server.config import ConfigError
from server.config_file import load_config
from server.processes.memory import divide_memory
from server.processes.resolution import resolve

StartServer = Callable[..., RunningServer]


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    until_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until_s, f"{what} did not come about within {seconds} s"
        time.sleep(0.05)


def sum_metric(text: str, name: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def test_start_answer_stop(start: StartServer) -> None:
    server = start()
    status, body = server.embed(["word1 word2 word3", "word5"])
    assert status == 200
    rows = [item["embedding"] for item in json.loads(body)["data"]]
    assert rows == [[3, 3, 5, 12], [1, 7, 7, 7]]  # length, first, last, sum of the token ids
    log = server.log
    for part in ("null: BertModel, embed, from", "engine     null", "memory     weights", "curl http://127.0.0.1:"):
        assert part in log
    assert server.stop() == 0


def test_workers_and_replicas_share_the_work_and_end_with_their_supervisor(start: StartServer) -> None:
    """Two HTTP processes, two engines, one limit: however calls are spread, 4 get in and the others hear 429."""
    server = start(
        server={"http_workers": 2},
        engine={"replicas": 2, "null_step_ms": 1500},
        limits={"max_concurrent_requests": 4, "max_client_batch_size": 1, "max_batch_requests": 1},
    )
    workers, engines = (server.children(f"server.processes.{kind}_process") for kind in ("http", "engine"))
    assert (len(workers), len(engines)) == (2, 2)
    with ThreadPoolExecutor(12) as pool:
        statuses = sorted(status for status, _ in pool.map(lambda index: server.embed(f"word{index}"), range(12)))
    assert statuses == [200] * 4 + [429] * 8
    wait_for(lambda: sum_metric(server.get("/metrics")[1], "padless_admitted_inputs{") == 0, "an empty queue")
    metrics = server.get("/metrics")[1]
    assert sum_metric(metrics, 'padless_requests_total{model="null",outcome="ok"') == 4
    counts = [sum_metric(metrics, f'padless_batch_tokens_count{{model="null",replica="{each}"}}') for each in (0, 1)]
    assert sum(counts) == 4 and min(counts) >= 1
    server.process.kill()
    server.process.wait(10)
    wait_for(lambda: not any(is_running(pid) for pid in workers + engines), "the children's end")


def is_running(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


@pytest.mark.slow
def test_killed_engine_recovers(start: StartServer) -> None:
    """Calls under way get 503 at once, readiness turns off, the engine is started again, and its restart is counted."""
    server = start(engine={"null_step_ms": 5000})
    answers: list[tuple[int, str]] = []
    waiting = threading.Thread(target=lambda: answers.append(server.embed("word1")))
    waiting.start()
    wait_for(lambda: sum_metric(server.get("/metrics")[1], "padless_admitted_inputs{") == 1, "the call in the engine")
    os.kill(server.children("server.processes.engine_process")[0], signal.SIGKILL)
    waiting.join(4)  # the step would have taken longer
    assert [status for status, _ in answers] == [503]
    assert "retry" not in answers[0][1] and json.loads(answers[0][1])["error"]["code"] == "engine_unavailable"
    assert server.get("/ready")[0] == 503
    assert server.get("/health")[0] == 200
    wait_for(lambda: server.get("/ready")[0] == 200, "readiness after the restart")
    assert server.embed("word1")[0] == 200
    assert sum_metric(server.get("/metrics")[1], "padless_engine_restarts_total{") == 1


@pytest.mark.slow
def test_killed_http_worker_is_replaced_and_frees_its_places(start: StartServer) -> None:
    server = start(server={"http_workers": 1}, engine={"null_step_ms": 3000})
    pid = server.children("server.processes.http_process")[0]

    def call_in_vain() -> None:
        try:
            server.embed("word1")
        except OSError:
            return

    waiting = threading.Thread(target=call_in_vain)
    waiting.start()
    wait_for(lambda: sum_metric(server.get("/metrics")[1], "padless_admitted_inputs{") == 1, "the call in the engine")
    os.kill(pid, signal.SIGKILL)
    waiting.join(10)
    wait_for(lambda: server.children("server.processes.http_process") not in ([], [pid]), "a new worker")
    wait_for(lambda: can_connect(server), "an answer of the new worker")
    assert sum_metric(server.get("/metrics")[1], "padless_admitted_inputs{") == 0


def can_connect(server: RunningServer) -> bool:
    try:
        return server.get("/ready")[0] == 200
    except OSError:
        return False


@pytest.mark.slow
def test_sigterm_under_load_loses_nothing(start: StartServer) -> None:
    """Everything accepted before SIGTERM is answered; what comes after is refused, not lost; exit status 0."""
    server = start(engine={"null_step_ms": 800}, limits={"max_batch_requests": 2})
    with ThreadPoolExecutor(10) as pool:
        calls = [pool.submit(server.embed, f"word{index}") for index in range(10)]
        wait_for(lambda: sum_metric(server.get("/metrics")[1], "padless_admitted_inputs{") >= 8, "ten calls inside")
        server.process.send_signal(signal.SIGTERM)
        statuses = [call.result()[0] for call in calls]
    assert statuses == [200] * 10
    assert server.process.wait(20) == 0
    assert server.children("server") == []


@pytest.mark.slow
def test_what_outlasts_the_drain_timeout_is_told_so(start: StartServer) -> None:
    """Neither a closed connection nor a traceback: an error in the protocol's own form."""
    server = start(server={"drain_timeout_s": 1}, engine={"null_step_ms": 4000})
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(server.embed, "word1")
        wait_for(
            lambda: sum_metric(server.get("/metrics")[1], "padless_admitted_inputs{") == 1, "the call in the engine"
        )
        server.process.send_signal(signal.SIGTERM)
        status, body = call.result()
    assert status == 503
    assert json.loads(body)["error"]["code"] == "engine_unavailable"
    assert server.process.wait(20) == 0


def test_inline_engine(start: StartServer) -> None:
    server = start(engine={"inline": True})
    assert server.embed("word3")[0] == 200
    assert server.children("server.processes.engine_process") == []
    assert server.stop() == 0


def test_a_start_that_cannot_work_ends_with_the_reason(null_model: Path, tmp_path: Path) -> None:
    """One line that names the key and the remedy, status 2: a port in use, no directory, no weights, a bad limit."""
    (tmp_path / "empty").mkdir()
    weightless = write_config(tmp_path / "weightless.yaml", null_model, engine={"kind": "planned"})
    missing = write_config(tmp_path / "missing.yaml", tmp_path / "empty")
    too_long = write_config(tmp_path / "long.yaml", null_model, limits={"max_input_tokens": 128})
    expected = {missing: "has no config.json", weightless: "no weights", too_long: r"limits\.max_input_tokens \(128\)"}
    for config, words in expected.items():
        with pytest.raises((ConfigError, ModelDirectoryError), match=words):
            divide_memory(resolve(load_config(config), tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as first:
        taken = write_config(tmp_path / "taken.yaml", null_model, server={"port": first.getsockname()[1]})
        refused = start_server(taken)
        assert refused.process.wait(60) == 2
    assert "server.port" in refused.log and refused.log.count("\n") == 1


@pytest.mark.slow
def test_an_engine_that_never_starts_ends_the_server(tmp_path: Path) -> None:
    """Its file of weights holds others than the model's: the planned engine cannot load it, and says so."""
    model = make_model_directory(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    (model / "config.json").write_text(json.dumps(config | sizes))
    save_file({"stranger": np.zeros(1, np.float32)}, model / "model.safetensors")
    server = start_server(write_config(tmp_path / "broken.yaml", model, engine={"kind": "planned"}))
    assert server.process.wait(120) == 1
    assert "left over: stranger" in server.log and "cannot be started" in server.log


@pytest.mark.slow
def test_stuck_engine_is_replaced(start: StartServer) -> None:
    """A process that is alive and silent: readiness turns off, and the supervisor starts another one."""
    server = start()
    engine = server.children("server.processes.engine_process")[0]
    os.kill(engine, signal.SIGSTOP)
    wait_for(lambda: server.get("/ready")[0] == 503, "unreadiness")
    assert "has said nothing" in server.get("/ready")[1]
    assert server.embed("word1")[0] == 503
    wait_for(lambda: server.get("/ready")[0] == 200, "readiness")
    assert server.embed("word1")[0] == 200
    assert server.children("server.processes.engine_process") != [engine]
    assert "it is killed" in server.log


def test_sigterm_while_loading_ends_at_once(null_model: Path, tmp_path: Path) -> None:
    server = start_server(write_config(tmp_path / "early.yaml", null_model))
    wait_for(lambda: bool(server.children("server.processes.engine_process")), "the engine process")
    assert server.stop() == 0
    assert "killed" not in server.log and "Traceback" not in server.log


def test_who_comes_when_nobody_answers_any_more_is_refused(start: StartServer) -> None:
    """A connection that is let in, and cut when the engines have ended, looks as if its request had been lost."""
    server = start()
    port = int(server.url.rsplit(":", 1)[1])
    (engine,) = server.children("server.processes.engine_process")
    os.kill(engine, signal.SIGSTOP)  # it has the supervisor wait for it
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: not server.children("server.processes.http_process"), "the end of the HTTP process")
    wait_for(lambda: is_refused(port), "an address that refuses", 2.0)
    assert server.process.poll() is None, "it still waits for the engine"
    os.kill(engine, signal.SIGKILL)
    server.process.wait(30)


def is_refused(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1.0)
        return client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


@pytest.mark.parametrize("is_inline", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_tokenizer_that_is_not_there_is_told_in_one_line(null_model: Path, tmp_path: Path, is_inline: bool) -> None:
    """By the HTTP process, which is not started again: it would fail again."""
    directory = tmp_path / "model"
    shutil.copytree(null_model, directory)
    (directory / "tokenizer.json").unlink()
    server = start_server(write_config(tmp_path / "config.yaml", directory, engine={"inline": is_inline}))
    assert server.process.wait(60) == 1
    assert server.log.count("there is no tokenizer.json") == 1 and "Traceback" not in server.log
    assert "http 0 cannot be started; the reason is above" in server.log
