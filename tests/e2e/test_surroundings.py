"""Wherever it is started and whatever the environment says: the same server."""

import sys
from pathlib import Path

import pytest
from running_server import start_command, write_config

ROOT = Path(__file__).parents[2]
DEAD_PROXY = "http://127.0.0.1:9"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder in which other people's code has our names."""
    for name in ("server", "runtime", "models"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('this is not Padless')\n")
    return tmp_path


def test_it_starts_and_answers(elsewhere: Path, null_model: Path, tmp_path: Path) -> None:
    """In another server's folder, with a proxy that is dead, and a long name of the folder for temporary files."""
    (long := tmp_path / ("long" * 30)).mkdir()
    environment = {"PYTHONPATH": str(ROOT), "TMPDIR": str(long), "XDG_RUNTIME_DIR": str(long)}
    environment |= dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), DEAD_PROXY)
    config = write_config(tmp_path / "padless.yaml", null_model)
    command = [sys.executable, "-P", "-m", "server", "--config", str(config)]
    server = start_command(command, tmp_path / "log", directory=elsewhere, environment=environment)
    try:
        server.wait_ready()
        assert server.embed("word1")[0] == 200
        assert "Ready after" in server.log
    finally:
        assert server.stop() == 0
