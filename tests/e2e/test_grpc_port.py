"""gRPC's port, as real processes: shared by HTTP processes, with TLS, and let go of in order."""

import os
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from running_server import RunningServer, start_server, write_config

from server.config import ConfigError, HttpConfig
from server.http.api.grpc_health import SERVING, HealthCheckResponse
from server.http.api.tei_messages import EmbedRequest, EmbedResponse
from server.http.protobuf import MessageReader, write
from server.processes.listeners import open_listeners

CHECK, EMBED = "/grpc.health.v1.Health/Check", "/tei.v1.Embed/Embed"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Self-made for 127.0.0.1, with its key in the same file."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=padless"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text(cert.read_text() + key.read_text())
    return both


@pytest.fixture
def server(null_model: Path, tmp_path: Path, certificate: Path) -> Iterator[RunningServer]:
    options = {"grpc_port": 0, "http_workers": 2, "ssl_certfile": str(certificate)}
    running = start_server(write_config(tmp_path / "a.yaml", null_model, server=options))
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.mark.slow
def test_two_processes_share_the_port(server: RunningServer, certificate: Path) -> None:
    server.trust = ssl.create_default_context(cafile=certificate)
    server.wait_ready()
    while "gRPC on port" not in server.log:
        time.sleep(0.05)
    port = int(re.findall(r"gRPC on port (\d+)", server.log)[0])
    for worker in server.children("server.processes.grpc_process"):
        assert port in list_listening(worker)
    for _ in range(10):  # connections of their own, which the kernel deals out
        trust = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{port}", trust) as channel:
            health = MessageReader(100).read(HealthCheckResponse, channel.unary_unary(CHECK)(b"", timeout=10))
            assert health.status == SERVING
            answer = channel.unary_unary(EMBED)(write(EmbedRequest("word1")), timeout=10)
            assert len(MessageReader(100).read(EmbedResponse, answer).embeddings) == 4
    assert server.stop() == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def list_listening(pid: int) -> set[int]:
    """Ports that this process listens at."""
    own = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()}
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {int(line[1].rpartition(":")[2], 16) for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in own}


def test_a_port_that_is_taken() -> None:
    first = open_listeners(HttpConfig(port=0))
    taken = first.public.getsockname()[1]
    with pytest.raises(ConfigError, match=rf"server\.host 127\.0\.0\.1, server\.grpc_port {taken}: "):
        open_listeners(HttpConfig(port=0, grpc_port=taken))
    first.close()


def test_the_port_is_held_for_its_processes_alone() -> None:
    opened = open_listeners(HttpConfig(port=0, grpc_port=0))
    settled = opened.settle(HttpConfig(port=0, grpc_port=0))
    with pytest.raises(ConfigError, match=r"server\.grpc_port"):
        open_listeners(settled)
    opened.close()
    open_listeners(settled).close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grpc_port": 8000}, "grpc_port 8000 is another one's port"),
        ({"grpc_port": 9001, "admin_port": 9001}, "grpc_port 9001 is another one's port"),
        (
            {"grpc_port": 9001, "ssl_certfile": "a.pem", "ssl_keyfile_password": "b"},
            "gRPC reads keys without one only",
        ),
    ],
)
def test_what_contradicts(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        HttpConfig(**options)
