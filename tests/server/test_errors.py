"""Every error: its status, its headers, and its body in the shape of each protocol."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import MakeServer, Server

import server as package
from runtime.config import EngineConfig
from server.config import ChatConfig, HttpConfig, LimitsConfig
from server.errors import (
    DeadlineExceeded,
    EngineFailure,
    EngineUnavailable,
    Kind,
    MethodNotAllowed,
    Overloaded,
    ServiceError,
)
from server.http.api import openai_errors, tei
from server.http.app import App
from server.http.call import Call, Reply
from server.http.retry import bound_retry
from server.http.route import Route
from server.http.state import ServerState
from server.wire.job import EngineStatus

EXPECTED = {
    # error: (OpenAI status, type, code), (TEI status, error_type)
    "InvalidBody": ((400, "invalid_request_error", "invalid_body"), (422, "Validation")),
    "InvalidField": ((400, "invalid_request_error", "invalid_value"), (422, "Validation")),
    "EmptyInput": ((400, "invalid_request_error", "empty_input"), (400, "Empty")),
    "InputTooLong": ((400, "invalid_request_error", "context_length_exceeded"), (422, "Validation")),
    "WrongTask": ((400, "invalid_request_error", "wrong_task"), (422, "Validation")),
    "TokenizerFailure": ((400, "invalid_request_error", "tokenizer_error"), (422, "Tokenizer")),
    "Unauthenticated": ((401, "invalid_request_error", "invalid_api_key"), (401, "Unauthorized")),
    "Forbidden": ((403, "permission_error", "forbidden"), (403, "Forbidden")),
    "UnknownModel": ((404, "invalid_request_error", "model_not_found"), (404, "Validation")),
    "UnknownRoute": ((404, "invalid_request_error", "unknown_url"), (404, "Validation")),
    "MethodNotAllowed": ((405, "invalid_request_error", "method_not_allowed"), (405, "Validation")),
    "BodyTooLarge": ((413, "invalid_request_error", "body_too_large"), (413, "Validation")),
    "UnsupportedEncoding": ((415, "invalid_request_error", "unsupported_encoding"), (415, "Validation")),
    "Overloaded": ((429, "rate_limit_error", "queue_full"), (429, "Overloaded")),
    "EngineUnavailable": ((503, "service_unavailable_error", "engine_unavailable"), (503, "Unhealthy")),
    "DeadlineExceeded": ((504, "timeout_error", "deadline_exceeded"), (504, "Timeout")),
    "Unservable": ((400, "invalid_request_error", "unservable"), (422, "Validation")),
    "EngineFailure": ((500, "server_error", "engine_failure"), (500, "Backend")),
    "InvalidAnswer": ((500, "server_error", "invalid_answer"), (500, "Backend")),
}


def walk(cls: type[ServiceError]) -> list[type[ServiceError]]:
    return [cls, *(below for child in cls.__subclasses__() for below in walk(child))]


OURS = [cls for cls in walk(ServiceError) if cls is not ServiceError]


def make_error(cls: type[Any]) -> ServiceError:
    if cls is Overloaded:
        return Overloaded("words", retry_after_s=2.5)
    if cls is MethodNotAllowed:
        return MethodNotAllowed("words", allow="GET")
    error = cls("words", param="field")
    assert isinstance(error, ServiceError)
    return error


@pytest.mark.parametrize("cls", OURS, ids=lambda cls: cls.__name__)
def test_the_shapes(cls: type[ServiceError]) -> None:
    error = make_error(cls)
    openai, other = EXPECTED[cls.__name__]
    status, body = openai_errors.render_error(error)
    assert (status, body["error"]["type"], body["error"]["code"]) == openai
    assert body["error"]["message"] == "words"
    assert body["error"]["param"] == error.param
    assert tei.render_error(error) == (other[0], {"error": "words", "error_type": other[1]})


def test_every_kind_has_an_error_and_a_shape() -> None:
    assert set(EXPECTED) == {cls.__name__ for cls in OURS}
    assert {cls.kind for cls in OURS} | {Kind.INTERNAL} == set(Kind) == set(openai_errors.SHAPES)


@pytest.mark.parametrize(
    ("retry_after_s", "seconds", "milliseconds"),
    [(0.0, "1", "1"), (0.2504, "1", "251"), (1.0, "1", "1000"), (2.1, "3", "2100"), (1e9, "60", "60000")],
)
def test_retry_headers(retry_after_s: float, seconds: str, milliseconds: str) -> None:
    assert bound_retry(retry_after_s) == {"retry-after": seconds, "retry-after-ms": milliseconds}


@pytest.mark.anyio
class TestOverHttp:
    ROUTES = (
        ("embed", "/v1/embeddings", {"model": "embedder", "input": "word1"}),
        ("classify", "/predict", {"inputs": "word1"}),
    )

    async def call(self, server: Server, engine: str, error: Exception) -> httpx.Response:
        path, body = next((path, body) for name, path, body in self.ROUTES if name == engine)
        getattr(server, engine).error = error
        return await server.client.post(path, json=body)

    @pytest.mark.parametrize("engine", ["embed", "classify"])
    @pytest.mark.parametrize(
        ("error", "status", "header"),
        [
            (EngineUnavailable("the engine died"), 503, ("retry-after", "1")),
            (DeadlineExceeded("too late"), 504, ("x-should-retry", "false")),
            (EngineFailure("the step failed"), 500, None),
            (RuntimeError("secret"), 500, None),
        ],
        ids=lambda value: type(value).__name__,
    )
    async def test_engine_errors(
        self, server: Server, engine: str, error: Exception, status: int, header: tuple[str, str] | None
    ) -> None:
        response = await self.call(server, engine, error)
        assert response.status_code == status
        assert "secret" not in response.text
        assert ("error_type" in response.json()) == (engine == "classify")
        if header:
            assert response.headers[header[0]] == header[1]
        getattr(server, engine).error = None
        assert (await self.call(server, engine, None)).status_code == 200  # type: ignore[arg-type]

    async def test_rows_of_nan_are_an_error_that_names_them(self, server: Server) -> None:
        server.embed.nan_rows = (1, 3)
        response = await server.embed_text(["word1", "word2", "word3", "word4"])
        assert response.status_code == 500
        error = response.json()["error"]
        assert error["code"] == "invalid_answer"
        assert "2 of 4" in error["message"] and "1, 3" in error["message"]

    async def test_rows_of_nan_in_a_classifier(self, server: Server) -> None:
        server.classify.nan_rows = (0,)
        response = await server.client.post("/predict", json={"inputs": "word1"})
        assert response.status_code == 500 and response.json()["error_type"] == "Backend"

    @pytest.mark.parametrize(
        ("method", "path", "status", "code"),
        [
            ("GET", "/nothing", 404, "unknown_url"),
            ("POST", "/v1/nothing", 404, "unknown_url"),
            ("GET", "/v1/embeddings", 405, "method_not_allowed"),
            ("DELETE", "/health", 405, "method_not_allowed"),
        ],
    )
    async def test_errors_of_the_framework(
        self, server: Server, method: str, path: str, status: int, code: str
    ) -> None:
        response = await server.client.request(method, path)
        assert response.status_code == status
        assert response.json()["error"]["code"] == code
        assert "detail" not in response.json()
        if status == 405:
            assert response.headers["allow"] in ("GET", "POST")
        assert server.count(route="other", outcome="invalid") == 1

    async def test_errors_of_the_framework_on_a_path_of_tei(self, server: Server) -> None:
        response = await server.client.put("/predict")
        assert response.status_code == 405 and response.headers["allow"] == "POST"
        assert response.json()["error_type"] == "Validation" and "/predict" in response.json()["error"]

    async def test_no_ready_replica(self, server: Server) -> None:
        server.embed.reported = (EngineStatus(is_ready=False, reason="warming up"),)
        response = await server.embed_text("word1")
        assert response.status_code == 503
        assert "warming up" in response.json()["error"]["message"]
        assert server.embed.calls == []

    async def test_one_ready_replica_is_enough_to_serve(self, server: Server) -> None:
        server.embed.reported = (
            EngineStatus(is_ready=False, reason="dead"),
            EngineStatus(is_ready=True, reason="ready"),
        )
        assert (await server.embed_text("word1")).status_code == 200
        response = await server.client.get("/ready")
        assert response.status_code == 503
        assert "replica 0: dead" in response.json()["error"]["message"]
        assert response.headers["retry-after"] == "1"

    async def test_a_bug(self, server: Server, caplog: pytest.LogCaptureFixture) -> None:
        async def broken(call: Call, state: ServerState) -> Reply:
            raise KeyError("secret")

        app = App(server.state, [Route("GET", "/broken", broken, openai_errors.render_error, "", "")])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://padless") as client:
            response = await client.get("/broken", headers={"x-request-id": "mine"})
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "internal_error" and "secret" not in response.text
        assert response.headers["x-request-id"] == "mine"
        assert "mine" in caplog.text

    @pytest.mark.parametrize("path", ["/health", "/nothing", "/v1/models", "/metrics"])
    async def test_request_ids_are_made_up(self, server: Server, path: str) -> None:
        ids = {(await server.client.get(path)).headers["x-request-id"] for _ in range(3)}
        assert len(ids) == 3

    @pytest.mark.parametrize("request_id", ["abc-123", "a" * 128, "trace:1/2+3=4@x"])
    async def test_sane_request_ids_are_kept(self, server: Server, request_id: str) -> None:
        response = await server.embed_text("word1", headers={"x-request-id": request_id})
        assert response.headers["x-request-id"] == request_id

    @pytest.mark.parametrize("request_id", ["", "a" * 129, "two words", "semi;colon", b"\xff"])
    async def test_others_are_replaced(self, server: Server, request_id: Any) -> None:
        response = await server.client.get("/health", headers={b"x-request-id": request_id})
        assert response.headers["x-request-id"] not in (request_id, "")

    async def test_first_page_says_where_to_go(self, server: Server) -> None:
        said = (await server.client.get("/")).json()
        assert (said["server"], said["models"]) == ("padless", ["embedder", "classifier"])
        for path in (said["docs"], said["openapi"], said["ready"]):
            assert (await server.client.get(path)).status_code == 200

    async def test_documentation(self, server: Server) -> None:
        page = await server.client.get("/docs")
        assert page.status_code == 200
        sources = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)""", page.text)
        assert len(sources) >= 3
        for source in sources:  # the page's scripts and styles come from here, not from the internet
            assert source.startswith("/") and not source.startswith("//")
            assert (await server.client.get(source)).status_code == 200
        document = (await server.client.get("/openapi.json")).json()
        for path, field in (("/v1/embeddings", "input"), ("/predict", "inputs"), ("/tokenize", "inputs")):
            schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
            if path != "/v1/embeddings":
                schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            assert field in schema["properties"]
            assert "$ref" not in str(schema)
            refused = "400" if path == "/v1/embeddings" else "422"
            assert refused in document["paths"][path]["post"]["responses"]


ROOT = Path(package.__file__).parent
STARTS = ("ConfigError", "ModelDirectoryError")
"""Errors that the operator hears."""
CLIENTS_HEAR = ("http", "tasks", "text", "engine", "wire")
"""The parts of the server whose errors clients may get."""


def list_texts(path: Path) -> Iterator[str]:
    """Of a module's program, but for documentation and for errors of the configuration."""
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        is_config = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in STARTS
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif not is_config and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            nodes += ast.iter_child_nodes(node)


def test_clients_are_not_told_the_operators_keys() -> None:
    """They could not change them."""
    sections = {"server": HttpConfig, "limits": LimitsConfig, "engine": EngineConfig, "chat": ChatConfig}
    keys = [f"{name}.{key}" for name, section in sections.items() for key in section.model_fields]
    texts = [(path, text) for part in CLIENTS_HEAR for path in (ROOT / part).rglob("*.py") for text in list_texts(path)]
    assert len(texts) > 500
    told = [(path.name, text) for path, text in texts if any(key in text for key in keys)]
    assert told == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("access_log", "paths"),
    [("failures", ["/nothing"]), ("all", ["/health", "/ready", "/nothing"]), ("none", [])],
)
async def test_a_probe_that_says_no_has_not_failed(
    make_server: MakeServer, caplog: pytest.LogCaptureFixture, access_log: str, paths: list[str]
) -> None:
    """The supervisor asks ten times a second while models load: what they print would be lost in it."""
    caplog.set_level("INFO", logger="padless.access")
    server = make_server(http={"access_log": access_log})
    server.embed.reported = ()
    for path, status in (("/health", 200), ("/ready", 503), ("/nothing", 404)):
        assert (await server.client.get(path)).status_code == status
    assert [json.loads(line)["path"] for line in caplog.messages] == paths


@pytest.mark.anyio
async def test_alive_even_if_not_ready(make_server: MakeServer) -> None:
    server = make_server()
    server.embed.reported = ()
    for path in ("/health", "/healthz", "/ping"):
        assert (await server.client.get(path)).status_code == 200
    assert (await server.client.get("/ready")).status_code == 503
