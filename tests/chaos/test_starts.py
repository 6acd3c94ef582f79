"""What a server finds when it starts: a cache folder it cannot write to, and weights that are not whole."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running_server import RunningServer, start_command, start_server
from tests.e2e.small_bert import make_small_bert

pytestmark = pytest.mark.chaos


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Of a server with a small model that computes."""
    directory = make_small_bert(tmp_path / "model")
    path = tmp_path / "starts.yaml"
    engine = {"threads": 1, "precision": "fp32", "warmup": False}
    source = {"path": str(directory)}
    path.write_text(json.dumps({"server": {"port": 0}, "models": [{"name": "m", "source": source, "engine": engine}]}))
    return path


def change_engine(config: Path, **options: object) -> None:
    settings = json.loads(config.read_text())
    settings["models"][0]["engine"] |= options
    config.write_text(json.dumps(settings))


def read_info(server: RunningServer) -> dict[str, Any]:
    """Of the only model."""
    (model,) = json.loads(server.get("/info")[1])["models"]
    return model


@pytest.mark.slow
def test_cache_folder_that_cannot_be_written(config: Path, tmp_path: Path) -> None:
    """It is a file, which stops the superuser too: served all the same, by torch's kernels, and the log says why. What
    precision is chosen holds for this start, and for both replicas."""
    no_folder = tmp_path / "full"
    no_folder.write_text("")
    change_engine(config, precision="auto", replicas=2)
    server = start_server(config, environment={"XDG_CACHE_HOME": str(no_folder)})
    server.wait_ready()
    assert server.log.count("judging precisions") == server.log.count("m/compiling: judging precisions") == 1
    chosen, other = (replica["info"]["chosen"] for replica in read_info(server)["replicas"])
    assert chosen == other and chosen["candidates"][0]["judged_on"] == "140 sample texts"
    assert "  precision  fp32, exact" in server.log or "  precision  int8, " in server.log
    status, text = server.embed(["word1 word2", "word3"], model="m")
    assert status == 200 and len(json.loads(text)["data"]) == 2
    assert server.stop() == 0
    assert "cannot be written" in server.log


FULL_DISK = 'mount -t tmpfs -o size=64k tmpfs "$0" && exec "$@"'


@pytest.mark.slow
def test_cache_folder_on_a_full_disk(config: Path, tmp_path: Path) -> None:
    """Which takes 64 KiB, and not the kernels: they are written in part, and served is by torch's."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "-rm", "sh", "-c", FULL_DISK, str(disk)]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], check=False).returncode != 0:
        pytest.skip("no file system of its own can be mounted here")
    change_engine(config, precision="auto", warmup=True)
    command = [*mount, sys.executable, "-m", "server", "--config", str(config)]
    server = start_command(command, tmp_path / "server.log", environment={"XDG_CACHE_HOME": str(disk)})
    server.wait_ready()
    status, text = server.embed(["word1 word2", "word3"], model="m")
    assert status == 200 and len(json.loads(text)["data"]) == 2
    assert server.stop() == 0
    assert "No space left" in server.log


def test_weights_that_are_not_whole(config: Path, tmp_path: Path) -> None:
    """Nothing is served, and nothing is tried for ever: the server ends, and says which file it is."""
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    server = start_server(config)
    assert server.process.wait(60) == 2
    assert str(weights) in server.log and "Traceback" not in server.log
