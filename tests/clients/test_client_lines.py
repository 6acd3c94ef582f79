"""The Python of each page in docs/protocols runs as it stands there, but for the addresses."""

import re
from pathlib import Path

import pytest

from tests.clients.environments import run_python
from tests.e2e.running_server import RunningServer
from tests.whisper_files import make_sound, write_wav

pytestmark = pytest.mark.clients

PAGES = sorted((Path(__file__).parents[2] / "docs" / "protocols").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ADDRESS, GRPC_ADDRESS = (re.compile(rf"(localhost|127\.0\.0\.1):{port}") for port in (8000, 8001))


OF_TOKENS = ("multi-vector", "pooling")
"""Pages whose lines ask a ColBERT."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_client_lines_work(
    page: Path, python: Path, server: RunningServer, colbert: RunningServer, grpc_address: str, tmp_path: Path
) -> None:
    asked = colbert if page.stem in OF_TOKENS else server
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert blocks, "the page shows no client"
    (tmp_path / "speech.wav").write_bytes(write_wav(make_sound(1.0)))
    for block in blocks:
        lines, num_addresses = ADDRESS.subn(asked.url.removeprefix("http://"), block)
        lines, num_others = GRPC_ADDRESS.subn(grpc_address, lines)
        assert num_addresses + num_others, "it asks another server"
        assert run_python([str(python), "-c", lines], tmp_path).strip(), "it shows nothing"
