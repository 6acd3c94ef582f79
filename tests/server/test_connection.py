"""Connections over real sockets: a limit of them, clocks for those who send slowly or not at all, or do not read."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import MakeGenerator, MakeServer, Server
from fake_generator import GenerationServer
from test_openai_client import run_live

HEAD = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = b'{"model": "embedder", "input": "word1"}'
WHOLE = HEAD + b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)


class Client:
    """A raw connection."""

    def __init__(self, port: int, *, receive_bytes: int = 0) -> None:
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", port))

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read_all(self) -> bytes:
        """Until the server closes; that may also be by a reset."""
        parts = []
        try:
            while part := self.socket.recv(65_536):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)

    def read_answer(self) -> tuple[int, bytes]:
        """Of a connection that stays open; with a length."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.socket.recv(65_536)
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
        while len(body) < length:
            body += self.socket.recv(65_536)
        return int(head.split()[1]), body


Connect = Callable[..., Client]


@contextmanager
def open_port(server: Server | GenerationServer) -> Iterator[Connect]:
    clients: list[Client] = []
    with run_live(server) as live:
        port = int(live.url.rpartition(":")[2].removesuffix("/v1"))

        def connect(**options: Any) -> Client:
            clients.append(Client(port, **options))
            return clients[-1]

        try:
            yield connect
        finally:
            for client in clients:
                client.socket.close()


def check_error(answer: bytes, status: int, code: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status) and b"connection: close" in head, answer
    assert json.loads(body)["error"]["code"] == code


def wait_for(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.01)


HALVES = {
    "a line": b"POST /v1/emb",
    "headers": HEAD,
    "body": HEAD + b"content-length: 39\r\n\r\n" + BODY[:20],
    "chunks": HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n" + BODY[:5],
}


@pytest.mark.parametrize("is_second", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("half", HALVES)
def test_half_a_request_is_ended(make_server: MakeServer, half: str, is_second: bool) -> None:
    with open_port(make_server(http={"header_timeout_s": 0.2, "body_timeout_s": 0.2})) as connect:
        client = connect()
        if is_second:
            client.send(WHOLE)
            assert client.read_answer()[0] == 200
        client.send(HALVES[half])
        check_error(client.read_all(), 408, "request_timeout")


@pytest.mark.parametrize("sent", [b"", b"\r\n"], ids=["nothing", "a blank line"])
def test_a_connection_that_says_nothing_is_closed(make_server: MakeServer, sent: bytes) -> None:
    with open_port(make_server(http={"header_timeout_s": 0.2})) as connect:
        client = connect()
        client.send(sent)
        assert client.read_all() == b""


def test_blank_lines_keep_no_connection_open(make_server: MakeServer) -> None:
    with open_port(make_server(http={"header_timeout_s": 0.2})) as connect:
        client = connect()
        client.send(WHOLE)
        assert client.read_answer()[0] == 200
        client.send(b"\r\n")
        assert client.read_all() == b""


def test_headers_that_trickle(make_server: MakeServer) -> None:
    """It is the whole that has its time, not each byte."""
    with open_port(make_server(http={"header_timeout_s": 0.4})) as connect:
        client = connect()
        begin_s = time.monotonic()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for number in range(200):
                client.send(b"GET /health HTTP/1.1\r\n" if not number else b"x-%d: y\r\n" % number)
                time.sleep(0.02)
        assert time.monotonic() - begin_s < 3


def test_bodies_that_trickle(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long before the body's time is over: it must go on."""
    monkeypatch.setattr("server.http.connection.PROGRESS_S", 0.2)
    with open_port(make_server(http={"body_timeout_s": 60})) as connect:
        slow, steady = connect(), connect()
        slow.send(HEAD + b"content-length: 100000\r\n\r\n")
        steady.send(HEAD + b"content-length: %d\r\n\r\n" % (20_000 + len(BODY)))
        for number in range(20):
            if number < 4:
                slow.send(b" ")
            steady.send(b" " * 1000)
            time.sleep(0.03)
        steady.send(BODY)
        assert steady.read_answer()[0] == 200
        check_error(slow.read_all(), 408, "request_timeout")


def test_a_request_in_time_and_its_long_answer_are_left_alone(make_server: MakeServer) -> None:
    server = make_server(http={"header_timeout_s": 0.1, "body_timeout_s": 0.1, "write_timeout_s": 0.1})
    server.embed.gate = asyncio.Event()
    with run_live(server) as live:
        client = Client(int(live.url.rpartition(":")[2].removesuffix("/v1")))
        client.send(WHOLE)
        wait_for(lambda: server.embed.num_running == 1)
        time.sleep(0.4)
        live.open_gate()
        assert client.read_answer()[0] == 200
        client.send(WHOLE)
        assert client.read_answer()[0] == 200
        client.socket.close()


def test_dozens_of_half_requests_are_gone_and_others_served(make_server: MakeServer) -> None:
    with open_port(make_server(http={"header_timeout_s": 0.5})) as connect:
        halves = [connect() for _ in range(40)]
        for half in halves:
            half.send(HEAD)
        whole = connect()
        whole.send(WHOLE)
        assert whole.read_answer()[0] == 200
        for half in halves:
            check_error(half.read_all(), 408, "request_timeout")


def test_connections_beyond_the_limit(make_server: MakeServer) -> None:
    with open_port(make_server(http={"max_connections": 3})) as connect:
        clients = [connect() for _ in range(3)]
        for client in clients:
            client.send(WHOLE)
            assert client.read_answer()[0] == 200
        check_error(connect().read_all(), 503, "too_many_connections")
        clients[0].socket.close()

        def is_served() -> bool:
            client = connect()
            try:
                client.send(WHOLE)
                return client.read_answer()[0] == 200
            finally:
                client.socket.close()

        wait_for(is_served)
        clients[1].send(WHOLE)
        assert clients[1].read_answer()[0] == 200


@pytest.mark.parametrize("header", [b"x-%d: y\r\n", b"y"], ids=["many", "one"])
def test_headers_without_end(make_server: MakeServer, header: bytes) -> None:
    with open_port(make_server()) as connect:
        client = connect()
        client.send(b"GET /health HTTP/1.1\r\nhost: x\r\nx: ")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for number in range(200):
                client.send((header % number if b"%" in header else header) * 2000)
                time.sleep(0.001)


def test_trailers_without_end(make_server: MakeServer) -> None:
    with open_port(make_server()) as connect:
        client = connect()
        client.send(HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n" + BODY[:5] + b"\r\n0\r\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(200):
                client.send(b"x: y\r\n" * 2000)
                time.sleep(0.001)


def test_trailers_are_no_headers(make_server: MakeServer) -> None:
    with open_port(make_server()) as connect:
        client = connect()
        client.send(
            HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\nx-request-id: mine\r\n\r\n" % (len(BODY), BODY)
        )
        assert client.socket.recv(65_536).startswith(b"HTTP/1.1 200")


def test_many_requests_sent_ahead(make_server: MakeServer) -> None:
    with open_port(make_server()) as connect:
        few, many = connect(), connect()
        few.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 10)
        wait_for(lambda: few.socket.recv(65_536, socket.MSG_PEEK).count(b"HTTP/1.1 200") == 10)
        many.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 5000)
        assert many.read_all().count(b"HTTP/1.1 200") <= 20


def test_a_reader_of_a_stream_who_does_not_read(make_generator: MakeGenerator) -> None:
    """Its generation is cancelled, long before the deadline."""
    generator = make_generator(http={"write_timeout_s": 0.3})
    generator.engine.answers = [[7] * 100]
    generator.engine.gate = asyncio.Semaphore(60)  # so many tokens are more than lies between the two
    asked = {"model": "writer", "prompt": "Once", "stream": True, "max_tokens": 100, "n": 100, "logprobs": 20}
    body = json.dumps(asked).encode()
    head = HEAD.replace(b"embeddings", b"completions") + b"content-length: %d\r\n\r\n" % len(body)
    with open_port(generator) as connect:
        client = connect(receive_bytes=2048)
        client.send(head + body)
        wait_for(lambda: generator.engine.num_cancelled == 1)
        wait_for(lambda: generator.count(outcome="cancelled") == 1)
    generator.check_idle()


@pytest.mark.parametrize("ending", [b"", b"connection: close\r\n"], ids=["kept alive", "closed"])
def test_a_reader_of_a_whole_answer_who_does_not_read(make_server: MakeServer, ending: bytes) -> None:
    server = make_server(http={"write_timeout_s": 0.3})
    body = json.dumps({"model": "embedder", "input": ["word1"] * 2048, "encoding_format": "float"}).encode()
    with run_live(server) as live:
        client = Client(int(live.url.rpartition(":")[2].removesuffix("/v1")), receive_bytes=2048)
        client.send(HEAD + ending + b"content-length: %d\r\n\r\n" % len(body) + body)
        wait_for(lambda: server.count(outcome="ok") == 1)
        wait_for(lambda: live.count_connections() == 0)
        client.socket.close()


UPGRADE = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAA\r\n"
"""What Java's client asks for of every server that it has not met yet."""
CHUNKED = b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize("rest", [b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY), CHUNKED])
@pytest.mark.parametrize("cut", [len(HEAD), len(HEAD + UPGRADE) + 5, -len(BODY), -5, 0])
def test_who_asks_for_another_protocol_is_answered_in_this_one(make_server: MakeServer, rest: bytes, cut: int) -> None:
    """With its body, wherever that is cut, and with whatever comes behind it."""
    request = HEAD + UPGRADE + rest
    last = HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)
    with open_port(make_server()) as connect:
        client = connect()
        client.send(request[:cut])
        time.sleep(0.05)
        client.send(request[cut:] + request + last)
        answers = client.read_all().split(b"HTTP/1.1 ")[1:]
        assert [answer[:3] for answer in answers] == [b"200"] * 3
        assert len({answer.partition(b"\r\n\r\n")[2] for answer in answers}) == 1
