"""TLS, the port for operators, and keys, as real processes: the supervisor finds its own way in."""

import json
import re
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer, start_server, write_config

from server.api_keys import hash_key
from server.config import ConfigError, HttpConfig
from server.processes.listeners import check_certificate, open_listeners

SECRET, PASSWORD = "0123456789abcdef-one", "of the private key"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Self-made for 127.0.0.1, its key encrypted; as options of `server:`."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=padless"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-passout", f"pass:{PASSWORD}"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return {"ssl_certfile": str(cert), "ssl_keyfile": str(key), "ssl_keyfile_password": PASSWORD}


StartOne = Callable[..., RunningServer]


@pytest.fixture
def start_one(null_model: Path, tmp_path: Path) -> Iterator[StartOne]:
    started: list[RunningServer] = []

    def start(server: dict[str, Any], *, environment: dict[str, str] | None = None) -> RunningServer:
        running = start_server(write_config(tmp_path / "a.yaml", null_model, server=server), environment=environment)
        started.append(running)
        if "ssl_certfile" in server:
            running.trust = ssl.create_default_context(cafile=server["ssl_certfile"])
        running.wait_ready()
        return running

    yield start
    for running in started:
        if running.process.poll() is None:
            running.stop()


def test_tls_and_admin_port_and_keys(start_one: StartOne, certificate: dict[str, Any], tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(json.dumps({"keys": [{"name": "search", "hash": hash_key(SECRET)}]}))
    server = start_one({"admin_port": 0, "api_keys": str(keys), "http_workers": 2, **certificate})
    assert server.url.startswith("https://")
    assert "engine     null" in server.log  # the supervisor has read /info
    assert "Bearer YOUR_KEY" in server.log
    assert server.embed("word1")[0] == 401
    assert server.embed("word1", **{"x-api-key": SECRET})[0] == 200
    for path in ("/metrics", "/info"):
        assert server.get(path)[0] == 401
        request = urllib.request.Request(server.url + path, headers={"authorization": f"Bearer {SECRET}"})
        assert server.send(request)[0] == 404
    assert server.get("/health")[0] == 200

    admin = RunningServer(server.process, server.log_path, re.findall(r"http://127\.0\.0\.1:\d+", server.log)[0])
    assert admin.embed("word1", **{"x-api-key": SECRET})[0] == 404
    status, info = admin.get("/info")
    assert status == 200 and PASSWORD not in info
    assert [admin.get(path)[0] for path in ("/ready", "/health")] == [200, 200]
    assert 'padless_key_requests_total{key="search",outcome="ok"} 1.0' in admin.get("/metrics")[1]

    with pytest.raises((urllib.error.URLError, ConnectionError)):
        RunningServer(server.process, server.log_path, server.url.replace("https", "http")).get("/health")
    assert server.stop() == 0


def test_one_key_from_the_environment(start_one: StartOne) -> None:
    """Without a port of its own the supervisor shows a key of its own; children do not get to see the user's."""
    server = start_one({}, environment={"PADLESS_API_KEY": SECRET})
    assert "engine     null" in server.log
    assert server.embed("word1")[0] == 401
    assert server.embed("word1", authorization=f"Bearer {SECRET}")[0] == 200
    assert server.get("/metrics")[0] == 401
    for module in ("http_process", "engine_process"):
        (child,) = server.children(f"server.processes.{module}")
        assert SECRET.encode() not in Path(f"/proc/{child}/environ").read_bytes()
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ssl_keyfile_password": "another"}, "server.ssl_keyfile "),
        ({"ssl_keyfile_password": None}, "server.ssl_keyfile "),
        ({"ssl_certfile": "none.pem"}, "No such file or directory. Name a certificate"),
        ({"ssl_keyfile": None}, "server.ssl_certfile "),
    ],
)
def test_certificate_that_cannot_be_used(certificate: dict[str, Any], change: dict[str, Any], words: str) -> None:
    if change.get("ssl_keyfile", "") is None:
        change = {**change, "ssl_keyfile_password": None}
    check_certificate(HttpConfig(**certificate))
    with pytest.raises(ConfigError, match=words) as raised:
        check_certificate(HttpConfig(**certificate | change))
    assert PASSWORD not in str(raised.value)


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_address_of_another_machine(host: str) -> None:
    """Another port would be no way out."""
    with pytest.raises(ConfigError, match=r"Set server\.host to an address of this machine"):
        open_listeners(HttpConfig(host=host, port=0))
    with pytest.raises(ConfigError, match=r"Set server\.admin_host to an address of this machine"):
        open_listeners(HttpConfig(port=0, admin_host=host, admin_port=0))


def test_admin_port_that_is_taken() -> None:
    first = open_listeners(HttpConfig(port=0))
    taken = first.public.getsockname()[1]
    try:
        with pytest.raises(ConfigError, match=rf"server.admin_host 127.0.0.1, server.admin_port {taken}: "):
            open_listeners(HttpConfig(port=0, admin_port=taken))
    finally:
        first.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ssl_keyfile": "a.pem"}, "need ssl_certfile"),
        ({"ssl_keyfile_password": "a"}, "need ssl_certfile"),
        ({"port": 9000, "admin_port": 9000}, "Choose another admin_port"),
    ],
)
def test_options_that_contradict_one_another(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        HttpConfig(**options)


@pytest.mark.parametrize(
    ("key", "status", "words"),
    [
        (SECRET, 0, f"hash: {hash_key(SECRET)}"),
        ("short", 2, "openssl rand -hex 32"),
        ("a key", 2, "must be printable ASCII"),
        ("", 2, "nothing came"),
    ],
)
def test_hash_key(padless: Callable[..., Any], key: str, status: int, words: str) -> None:
    ended = padless("hash-key", stdin=f"{key}\n")
    assert ended.status == status
    assert words in (ended.stderr if status else ended.stdout)
