"""`/v1/embed` and `/v2/embed` as Cohere answers them."""

import base64
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import CLS, EMBED_DIM, SEP, VOCAB, Server, compute_row

from server.errors import EngineFailure
from server.tasks.vector_types import WRITERS

pytestmark = pytest.mark.anyio
PATHS = ("/v1/embed", "/v2/embed")
WORDS = [f"word{index}" for index in range(20)]
LONG = " ".join(WORDS)
BYTE_TYPES = ("int8", "uint8", "binary", "ubinary")


def ids(*words: str) -> list[int]:
    return [VOCAB.index(word) for word in words]


def expect(*words: str) -> np.ndarray:
    return compute_row(np.array([CLS, *ids(*words), SEP]), EMBED_DIM)


async def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return await server.client.post(path, json={"input_type": "search_document", "model": "embedder", **body})


async def ask(server: Server, path: str, **body: Any) -> Any:
    response = await post(server, path, **body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_version_1_gives_a_list_of_floats(server: Server) -> None:
    for types in ({}, {"embedding_types": None}, {"embedding_types": []}):
        body = await ask(server, "/v1/embed", texts=["word1 word2", "word3"], **types)
        assert list(body) == ["response_type", "id", "embeddings", "texts", "meta"]
        assert body["response_type"] == "embeddings_floats" and body["texts"] == ["word1 word2", "word3"]
        np.testing.assert_allclose(body["embeddings"], [expect("word1", "word2"), expect("word3")], rtol=1e-6)
        assert body["meta"] == {"api_version": {"version": "1"}, "billed_units": {"input_tokens": 7}}


async def test_version_1_by_type(server: Server) -> None:
    body = await ask(server, "/v1/embed", texts=["word1"], embedding_types=["float"])
    assert body["response_type"] == "embeddings_by_type" and list(body["embeddings"]) == ["float"]


async def test_version_2_is_always_by_type(server: Server) -> None:
    response = await post(server, "/v2/embed", texts=["word1"])
    body = response.json()
    assert list(body) == ["id", "embeddings", "texts", "meta"] and body["id"] == response.headers["x-request-id"]
    np.testing.assert_allclose(body["embeddings"]["float"], [expect("word1")], rtol=1e-6)
    assert body["meta"] == {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 3}}


@pytest.mark.parametrize("path", PATHS)
async def test_all_types_at_once(server: Server, path: str) -> None:
    types = ["float", *BYTE_TYPES, "base64", "int8"]
    answers = (await ask(server, path, texts=["word1", "word2"], embedding_types=types))["embeddings"]
    assert list(answers) == types[:-1]
    rows = np.stack([expect("word1"), expect("word2")])
    np.testing.assert_allclose(answers["float"], rows, rtol=1e-6)
    decoded = [np.frombuffer(base64.b64decode(text), "<f4") for text in answers["base64"]]
    np.testing.assert_array_equal(decoded, rows)
    for kind in BYTE_TYPES:
        assert answers[kind] == WRITERS[kind](rows).tolist()  # type: ignore[index]


@pytest.mark.parametrize("kind", BYTE_TYPES)
async def test_one_type_alone(server: Server, kind: str) -> None:
    answers = (await ask(server, "/v2/embed", texts=["word1"], embedding_types=[kind], output_dimension=3))[
        "embeddings"
    ]
    assert answers == {kind: WRITERS[kind](expect("word1")[None, :3]).tolist()}  # type: ignore[index]


async def test_inputs_with_content(server: Server) -> None:
    parts = [{"type": "text", "text": "word2"}, {"type": "text", "text": "word3"}]
    inputs = [{"content": [{"type": "text", "text": "word1"}]}, {"content": parts}]
    body = await ask(server, "/v2/embed", inputs=inputs)
    assert server.embed.calls == [[[CLS, *ids("word1"), SEP], [CLS, *ids("word2", "word3"), SEP]]]
    assert body["texts"] == ["word1", "word2\nword3"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, WORDS[:14]),
        ({"truncate": "END"}, WORDS[:14]),
        ({"truncate": "START"}, WORDS[6:]),
        ({"max_tokens": 5}, WORDS[:3]),
        ({"truncate": "START", "max_tokens": 5}, WORDS[17:]),
        ({"max_tokens": 10**9}, WORDS[:14]),
    ],
)
async def test_truncation(server: Server, path: str, options: dict[str, Any], kept: list[str]) -> None:
    await ask(server, path, texts=[LONG], **options)
    assert server.embed.calls == [[[CLS, *ids(*kept), SEP]]]


async def test_input_types_are_prompts(server: Server) -> None:
    model = server.state.models["embedder"]
    prompts = {"query": "word8 ", "passage": "word9 ", "clustering": "word7 "}
    server.state.models["embedder"] = replace(model, info=replace(model.info, prompts=prompts))
    for kind in ("search_query", "search_document", "clustering", "classification"):
        await ask(server, "/v2/embed", texts=["word1"], input_type=kind)
    prefixes = [["word8"], ["word9"], ["word7"], []]
    assert server.embed.calls == [[[CLS, *ids(*prefix, "word1"), SEP]] for prefix in prefixes]


async def test_many(server: Server) -> None:
    texts = [f"word{index % 60} word{index // 60}" for index in range(2048)]
    body = await ask(server, "/v2/embed", texts=texts, embedding_types=["ubinary", "float"])
    assert len(body["embeddings"]["ubinary"]) == 2048 and body["texts"] == texts
    np.testing.assert_allclose(body["embeddings"]["float"][2047], expect("word7", "word34"), rtol=1e-6)


async def test_model_and_input_type_may_be_left_out(server: Server) -> None:
    assert (await server.client.post("/v2/embed", json={"texts": ["word1"]})).status_code == 200


REFUSED = {
    "empty list": ({"texts": []}, 400, "texts must not be empty"),
    "empty text": ({"texts": ["word1", ""]}, 400, "texts[1] must not be empty"),
    "missing": ({}, 400, "texts"),
    "a text": ({"texts": "word1"}, 400, "texts"),
    "ids": ({"texts": [1, 2]}, 400, "texts[0]"),
    "mixed": ({"texts": ["word1", 2]}, 400, "texts[1]"),
    "too many": ({"texts": ["word1"] * 2049}, 400, "the limit is 2048"),
    "too long": ({"texts": [LONG], "truncate": "NONE"}, 400, "texts has 22 tokens; the limit is 16"),
    "over max_tokens": ({"texts": ["word1 word2"], "truncate": "NONE", "max_tokens": 3}, 400, "the limit is 3"),
    "max_tokens": ({"texts": ["word1"], "max_tokens": 0}, 400, "max_tokens"),
    "truncate": ({"texts": ["word1"], "truncate": "MIDDLE"}, 400, "truncate"),
    "input_type": ({"texts": ["word1"], "input_type": "image"}, 400, "input_type"),
    "embedding_types": ({"texts": ["word1"], "embedding_types": ["float", "int4"]}, 400, "embedding_types[1]"),
    "types as a text": ({"texts": ["word1"], "embedding_types": "float"}, 400, "embedding_types"),
    "dimensions": ({"texts": ["word1"], "output_dimension": 9}, 400, "output_dimension is 9"),
    "dimensions as a text": ({"texts": ["word1"], "output_dimension": "4"}, 400, "output_dimension"),
    "model": ({"texts": ["word1"], "model": "nobody"}, 404, "nobody"),
    "task": ({"texts": ["word1"], "model": "classifier"}, 400, "/predict"),
    "images": ({"images": ["data:image/png;base64,AA=="]}, 400, "texts"),
}


def check_error(response: httpx.Response, status: int, problem: str) -> None:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["message"] and problem in response.json()["message"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", REFUSED)
async def test_refused(server: Server, path: str, case: str) -> None:
    body, status, problem = REFUSED[case]
    check_error(await post(server, path, **body), status, problem)
    assert server.embed.calls == [] and server.state.models["embedder"].admission.num_inputs == 0


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"texts": ["word1"], "inputs": [{"content": [{"type": "text", "text": "word1"}]}]}, "only one of them"),
        ({"inputs": []}, "inputs must not be empty"),
        ({"inputs": "word1"}, "inputs: should be a valid array"),
        ({"inputs": [{}]}, "inputs[0].content must be"),
        ({"inputs": [{"content": []}]}, "inputs"),
        ({"inputs": [{"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "of type 'image_url'"),
        ({"inputs": [{"content": [{"type": "text"}]}]}, "inputs[0].content[0].text must be a text"),
    ],
)
async def test_inputs_refused(server: Server, fields: dict[str, Any], problem: str) -> None:
    check_error(await post(server, "/v2/embed", **fields), 400, problem)


@pytest.mark.parametrize("path", PATHS)
async def test_errors_of_the_server(server: Server, path: str) -> None:
    server.embed.error = EngineFailure("the step failed")
    check_error(await post(server, path, texts=["word1"]), 500, "the step failed")
    server.embed.reported = ()
    check_error(await post(server, path, texts=["word1"]), 503, "not ready")
    response = await server.client.get(path)
    check_error(response, 405, "POST")
    response = await server.client.post(path, content=b"{", headers={"content-type": "application/json"})
    check_error(response, 400, "JSON")
