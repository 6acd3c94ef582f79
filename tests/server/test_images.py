"""What the images' Dockerfiles say fits what is in them."""

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from runtime.backends.cpu.build import ISA_FLAGS
from runtime.cache import cache_dir
from server.__main__ import SET_VARIABLES

DOCKER = Path(__file__).parents[2] / "docker"
IMAGES = ("Dockerfile", "Dockerfile.cuda")


class Probed(HTTPServer):
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Ready)
        self.lines: list[bytes] = []
        """The first line of each connection, whatever it is."""


class Ready(BaseHTTPRequestHandler):
    server: Probed

    def parse_request(self) -> bool:
        self.server.lines.append(self.raw_requestline)
        return super().parse_request()

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is written."""


@pytest.fixture
def probed() -> Iterator[Probed]:
    with Probed() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run_health_check(image: str, port: int) -> int:
    (line,) = re.findall(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", (DOCKER / image).read_text(), re.MULTILINE)
    python, *words = json.loads(line)
    assert python == "python"
    words = [word.replace("8000", str(port)) for word in words]
    return subprocess.run([sys.executable, *words], check=False, capture_output=True, timeout=30).returncode


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_health_check_asks_once_and_in_http_where_that_is_spoken(
    image: str, status: int, code: int, probed: Probed
) -> None:
    """A server that is not ready has answered: to ask it in TLS too would only be a warning in its log."""
    probed.status = status
    assert run_health_check(image, probed.server_port) == code
    assert probed.lines == [b"GET /ready HTTP/1.1\r\n"]


@pytest.mark.parametrize("image", IMAGES)
def test_health_check_leaves_a_server_alone_that_does_not_answer_yet(image: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert run_health_check(image, silent.getsockname()[1]) == 1
        silent.settimeout(0.5)
        silent.accept()[0].close()
        with pytest.raises(TimeoutError):
            silent.accept()


@pytest.mark.parametrize("image", IMAGES)
def test_health_check_fails_where_nobody_listens(image: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert run_health_check(image, port) == 1


def test_kernels_are_compiled_for_every_instruction_set() -> None:
    """The image has no compiler to make up for one."""
    (isas,) = re.findall(
        r"runtime\.backends\.cpu\.build \\\n *(.+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE
    )
    assert set(isas.split()) == set(ISA_FLAGS)


@pytest.mark.parametrize("image", IMAGES)
def test_the_users_variable_is_left_to_the_user(image: str) -> None:
    """Who set it would otherwise unset the address, and on a GPU the device."""
    variables = set(re.findall(r"(PADLESS_\w*SET)=", (DOCKER / image).read_text()))
    assert variables == {SET_VARIABLES[0]} and SET_VARIABLES[-1] == "PADLESS_SET"


def test_volumes_are_where_things_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume anywhere else is empty for ever, and one that the image has no folder for is root's."""
    image = (DOCKER / "Dockerfile").read_text()
    environment = dict(re.findall(r"(XDG_CACHE_HOME|HF_HOME)=(\S+)", image))
    monkeypatch.setenv("XDG_CACHE_HOME", environment["XDG_CACHE_HOME"])
    compiled = str(cache_dir("models"))
    volumes = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["padless"]["volumes"]
    assert dict(volume.split(":") for volume in volumes) == {"models": environment["HF_HOME"], "compiled": compiled}
    assert f"mkdir -p {compiled} " in image


def test_the_gpus_variant_lays_kernels_where_triton_keeps_them() -> None:
    """Triton makes what launches kernels when they first run, in C."""
    image, variant = (
        (DOCKER / "Dockerfile.cuda").read_text(),
        yaml.safe_load((DOCKER / "compose.cuda.yaml").read_text()),
    )
    service = variant["services"]["padless"]
    assert (DOCKER.parent / service["build"]["dockerfile"]).is_file()
    (kept,) = [volume.split(":")[1] for volume in service["volumes"]]
    assert kept.endswith("/.triton") and f" {kept}\n" in image and " gcc " in image
    assert service["volumes"][0].split(":")[0] in variant["volumes"]
