"""Whatever a client sends: a clear 4xx that names the field, never a 500, and the next request is served."""

import gzip
import json
import zlib
from typing import Any

import httpx
import pytest
from conftest import MAX_TOKENS, VOCAB, MakeServer, Server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.anyio

MODEL = {"model": "embedder"}
LONG = " ".join(["word1"] * (MAX_TOKENS + 1))

BAD_EMBEDDINGS = {
    "empty string": ({"input": ""}, "input", "empty_input"),
    "empty list": ({"input": []}, "input", "empty_input"),
    "empty string in a list": ({"input": ["word1", ""]}, "input", "empty_input"),
    "empty ids in a list": ({"input": [[1], []]}, "input", "empty_input"),
    "2,049 items": ({"input": ["word1"] * 2049}, "input", "invalid_value"),
    "a million characters": ({"input": "word1 " * 170_000}, "input", "context_length_exceeded"),
    "half a million words": ({"input": "a " * 500_000}, "input", "context_length_exceeded"),
    "a number": ({"input": 5}, "input", "invalid_value"),
    "null": ({"input": None}, "input", "invalid_value"),
    "an object": ({"input": {"text": "word1"}}, "input", "invalid_value"),
    "missing": ({}, "input", "invalid_value"),
    "text among ids": ({"input": [1, "word1"]}, "input", "invalid_value"),
    "ids among text": ({"input": ["word1", 1]}, "input", "invalid_value"),
    "null among text": ({"input": ["word1", None]}, "input", "invalid_value"),
    "lists of text": ({"input": [["word1"]]}, "input", "invalid_value"),
    "boolean id": ({"input": [True, False]}, "input", "invalid_value"),
    "boolean id in a list": ({"input": [[1, True]]}, "input", "invalid_value"),
    "float id": ({"input": [1.0, 2.0]}, "input", "invalid_value"),
    "negative id": ({"input": [5, -1]}, "input", "invalid_value"),
    "id outside the vocabulary": ({"input": [len(VOCAB)]}, "input", "invalid_value"),
    "id of 40 digits": ({"input": [10**40]}, "input", "invalid_value"),
    "negative id in a list": ({"input": [[5], [-1]]}, "input", "invalid_value"),
    "too long": ({"input": LONG}, "input", "context_length_exceeded"),
    "too long in a list": ({"input": ["word1", LONG]}, "input", "context_length_exceeded"),
    "too many ids": ({"input": [5] * (MAX_TOKENS + 1)}, "input", "context_length_exceeded"),
    "dimensions 0": ({"input": "word1", "dimensions": 0}, "dimensions", "invalid_value"),
    "dimensions of a string": ({"input": "word1", "dimensions": "3"}, "dimensions", "invalid_value"),
    "dimensions of a boolean": ({"input": "word1", "dimensions": True}, "dimensions", "invalid_value"),
    "too many dimensions": ({"input": "word1", "dimensions": 9}, "dimensions", "invalid_value"),
    "encoding format": ({"input": "word1", "encoding_format": "hex"}, "encoding_format", "invalid_value"),
    "model is a number": ({"input": "word1", "model": 5}, "model", "invalid_value"),
    "wrong task": ({"input": "word1", "model": "classifier"}, "model", "wrong_task"),
}


def check_openai_error(response: httpx.Response, status: int, *, param: str | None, code: str) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    assert sorted(body["error"]) == ["code", "message", "param", "type"]
    assert body["error"]["param"] == param
    assert body["error"]["code"] == code
    message = body["error"]["message"]
    assert isinstance(message, str) and message
    assert "Traceback" not in message and "pydantic" not in message
    return message


async def check_serves(server: Server) -> None:
    assert (await server.embed_text("word1")).status_code == 200
    assert [model.admission.num_inputs for model in server.state.models.values()] == [0, 0]
    assert [model.admission.num_tokens for model in server.state.models.values()] == [0, 0]


@pytest.mark.parametrize("case", BAD_EMBEDDINGS)
async def test_bad_embeddings(server: Server, case: str) -> None:
    fields, param, code = BAD_EMBEDDINGS[case]
    response = await server.client.post("/v1/embeddings", json=MODEL | fields)
    message = check_openai_error(response, 400, param=param, code=code)
    assert param in message
    assert server.embed.calls == []
    await check_serves(server)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        (["word1", "word1", ""], "input[2]"),
        (["word1", LONG], "input[1]"),
        ([[1, 2], [3, True]], "input[1][1]"),
        (["word1", 1], "input[1]"),
        ([[1], [2], [len(VOCAB)]], "input[2]"),
    ],
)
async def test_the_message_says_which_item(server: Server, given: Any, place: str) -> None:
    assert place in (await server.embed_text(given)).json()["error"]["message"]


async def test_too_long_names_length_limit_and_remedy(server: Server) -> None:
    message = (await server.embed_text(["word1", LONG])).json()["error"]["message"]
    assert f"{MAX_TOKENS + 3} tokens" in message
    assert f"limit is {MAX_TOKENS}" in message
    assert message.endswith("shorten it")


async def test_an_error_late_in_a_large_call_names_the_item(server: Server) -> None:
    texts = ["word1 " * 10] * 2000
    texts[1900] = ""
    assert "input[1900]" in (await server.embed_text(texts)).json()["error"]["message"]
    await check_serves(server)


async def test_unknown_model(server: Server) -> None:
    response = await server.client.post("/v1/embeddings", json={"model": "gpt" * 1000, "input": "word1"})
    message = check_openai_error(response, 404, param="model", code="model_not_found")
    assert "embedder" in message and len(message) < 300
    await check_serves(server)


BROKEN_BODIES = {
    "empty": b"",
    "cut off": b'{"model": "embedder", "input": "wo',
    "not JSON": b"model=embedder",
    "invalid UTF-8": b'{"model": "embedder", "input": "\xff\xfe"}',
    "byte order mark": b'\xef\xbb\xbf{"model": "embedder", "input": "word1"}',
    "a list": b"[]",
    "a number": b"5",
    "null": b"null",
    "deeply nested": b'{"model": "embedder", "input": ' + b"[" * 40_000,
    "a number of many digits": b'{"model": "embedder", "input": ' + b"9" * 10_000 + b"}",
    "a control character": b'{"model": "embedder", "input": "\x00"}',
}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/predict", "/tokenize"])
@pytest.mark.parametrize("case", BROKEN_BODIES)
async def test_broken_bodies(server: Server, case: str, path: str) -> None:
    response = await server.client.post(path, content=BROKEN_BODIES[case])
    refused = 413 if case == "deeply nested" else 400 if path == "/v1/embeddings" else 422
    assert response.status_code == refused
    assert "error" in response.json()
    await check_serves(server)


@pytest.mark.parametrize("text", [r'"\ud800"', r'["word1", "\udfff\ud800"]', r'"\ud83d"'])
async def test_lone_surrogates_name_the_field(server: Server, text: str) -> None:
    response = await server.client.post("/v1/embeddings", content=f'{{"model": "embedder", "input": {text}}}'.encode())
    check_openai_error(response, 400, param="input", code="invalid_body")
    await check_serves(server)


async def test_surrogate_pairs_and_odd_characters_are_text(server: Server) -> None:
    response = await server.client.post(
        "/v1/embeddings", content=rb'{"model": "embedder", "input": "\ud83d\ude00 \u0000 \u202e \ufeff word1"}'
    )
    assert response.status_code == 200


async def test_a_text_of_blanks_is_just_the_special_tokens(server: Server) -> None:
    assert (await server.embed_text("   \n ")).json()["usage"]["prompt_tokens"] == 2


BODY = json.dumps({"model": "embedder", "input": "word1 word2"}).encode()


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress)]
)
async def test_compressed_bodies(server: Server, encoding: str, pack: Any) -> None:
    response = await server.client.post(
        "/v1/embeddings", content=pack(BODY), headers={"content-encoding": encoding.upper()}
    )
    assert response.status_code == 200
    assert response.json()["usage"]["prompt_tokens"] == 4


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "nonsense"])
async def test_other_encodings_are_415(server: Server, encoding: str) -> None:
    response = await server.client.post("/v1/embeddings", content=BODY, headers={"content-encoding": encoding})
    check_openai_error(response, 415, param="content-encoding", code="unsupported_encoding")


# With names, because gzip writes the time into its header: two processes would collect different tests.
@pytest.mark.parametrize(
    "body",
    [BODY, gzip.compress(BODY)[:-9], gzip.compress(BODY) + b"more", gzip.compress(BODY) * 2, b""],
    ids=["not compressed", "cut off", "more behind", "two streams", "empty"],
)
async def test_broken_compression(server: Server, body: bytes) -> None:
    response = await server.client.post("/v1/embeddings", content=body, headers={"content-encoding": "gzip"})
    check_openai_error(response, 400, param="content-encoding", code="invalid_body")
    await check_serves(server)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_bomb_is_stopped_at_the_limit(make_server: MakeServer, encoding: str, pack: Any) -> None:
    server = make_server(http={"max_body_mb": 1.0})
    bomb = pack(b" " * 50_000_000)
    assert len(bomb) < 100_000
    response = await server.client.post("/v1/embeddings", content=bomb, headers={"content-encoding": encoding})
    check_openai_error(response, 413, param=None, code="body_too_large")
    await check_serves(server)


async def test_a_large_compressed_body_within_the_limit(make_server: MakeServer) -> None:
    server = make_server(http={"max_body_mb": 8.0})
    body = gzip.compress(BODY + b" " * 5_000_000)
    response = await server.client.post("/v1/embeddings", content=body, headers={"content-encoding": "gzip"})
    assert response.status_code == 200


async def test_too_large_by_content_length_is_refused_unread(make_server: MakeServer) -> None:
    server = make_server(http={"max_body_mb": 0.001})

    async def unreadable() -> Any:
        raise AssertionError("the body was read")
        yield b""

    response = await server.client.post("/v1/embeddings", content=unreadable(), headers={"content-length": "1001"})
    check_openai_error(response, 413, param=None, code="body_too_large")


async def test_too_large_in_chunks_is_refused_when_it_gets_there(make_server: MakeServer) -> None:
    server = make_server(http={"max_body_mb": 0.01})
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while True:
            sent += 1000
            yield b" " * 1000

    response = await server.client.post("/v1/embeddings", content=endless())
    check_openai_error(response, 413, param=None, code="body_too_large")
    assert sent < 20_000
    await check_serves(server)


@pytest.mark.parametrize("value", ["", "soon", "0", "-5", "nan", "inf", "1e30", "5s"])
async def test_bad_timeout_header(server: Server, value: str) -> None:
    response = await server.embed_text("word1", headers={"x-request-timeout-ms": value})
    message = check_openai_error(response, 400, param="x-request-timeout-ms", code="invalid_value")
    assert "x-request-timeout-ms" in message


BAD_PREDICT = {
    "empty string": "",
    "empty list": [],
    "empty item": [[]],
    "triple": ["a", "b", "c"],
    "triple in a batch": [["a"], ["a", "b", "c"]],
    "empty pair": ["", ""],
    "mixed": ["word1", ["word2"]],
    "numbers": [1, 2],
    "null": None,
    "too long": LONG,
    "too many": [["word1"]] * 2049,
}


@pytest.mark.parametrize("case", BAD_PREDICT)
async def test_bad_predict(server: Server, case: str) -> None:
    response = await server.client.post("/predict", json={"inputs": BAD_PREDICT[case]})
    body = response.json()
    expected = (400, "Empty") if case in ("empty string", "empty list", "empty pair") else (422, "Validation")
    assert (response.status_code, body["error_type"]) == expected, response.text
    assert sorted(body) == ["error", "error_type"] and "inputs" in body["error"]
    assert server.classify.calls == []
    await check_serves(server)


@pytest.mark.parametrize(
    "fields",
    [{"truncate": "yes"}, {"truncation_direction": "up"}, {"truncation_direction": 1}, {"raw_scores": 1}],
)
async def test_bad_options_of_predict(server: Server, fields: dict[str, Any]) -> None:
    response = await server.client.post("/predict", json={"inputs": "word1"} | fields)
    assert response.status_code == 422
    assert next(iter(fields)) in response.json()["error"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given=JSON, path=st.sampled_from(["/v1/embeddings", "/predict", "/tokenize"]))
async def test_any_json_is_answered(server: Server, given: Any, path: str) -> None:
    body = {"model": "embedder" if path != "/predict" else "classifier", "input": given, "inputs": given}
    response = await server.client.post(path, json=body)
    assert response.status_code in (200, 400, 422), response.text
    assert response.status_code == 200 or "error" in response.json()
