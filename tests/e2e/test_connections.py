"""Limits of connections in the real processes: uvloop, and the configuration's way to it."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from running_server import RunningServer, start_server, write_config

MAX_CONNECTIONS = 60
HALF = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def server(null_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    options = {"header_timeout_s": 1, "body_timeout_s": 1, "max_connections": MAX_CONNECTIONS}
    running = start_server(write_config(tmp_path_factory.mktemp("limited") / "a.yaml", null_model, server=options))
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


def connect(server: RunningServer) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=20)


def read_all(client: socket.socket) -> bytes:
    parts = []
    while part := client.recv(65_536):
        parts.append(part)
    return b"".join(parts)


def test_half_sent_requests_do_not_stay(server: RunningServer) -> None:
    clients = [connect(server) for _ in range(50)]
    for index, client in enumerate(clients):
        client.sendall(HALF + (b"content-length: 100\r\n\r\n{" if index % 2 else b""))
    assert server.embed("word1")[0] == 200
    for client in clients:
        assert read_all(client).startswith(b"HTTP/1.1 408 ")
        client.close()
    assert server.embed("word1")[0] == 200


def test_a_limit_of_connections(server: RunningServer) -> None:
    clients = [connect(server) for _ in range(MAX_CONNECTIONS + 2)]
    refused = b""
    for client in clients[MAX_CONNECTIONS:]:
        refused = read_all(client)
        assert refused.startswith(b"HTTP/1.1 503 ")
    assert json.loads(refused.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"
    for client in clients:
        client.close()
