"""What is wrong with a request to rank, in the shape of the protocol it came in."""

from typing import Any

import httpx
import pytest
from conftest import RANKER, MakeServer, Server

from server.errors import EngineFailure

pytestmark = pytest.mark.anyio

MANY = ["word2"] * 9
LONG = "word1 " * 40


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    return make_server(others={"ranker": RANKER}, max_client_batch_size=8)


def check_tei(response: httpx.Response, status: int, kind: str, said: str) -> None:
    body = response.json()
    assert (response.status_code, body["error_type"]) == (status, kind), body
    assert said in body["error"] and set(body) <= {"error", "error_type", "message"}


def check_shared(response: httpx.Response, status: int, code: str, said: str) -> None:
    body = response.json()
    assert (response.status_code, body["error"]["code"]) == (status, code), body
    assert said in body["message"] and body["message"] == body["error"]["message"]


def check_openai(response: httpx.Response, status: int, code: str, said: str) -> None:
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), error
    assert said in error["message"]


@pytest.mark.parametrize(
    ("body", "status", "kind", "said"),
    [
        ({"query": "word1", "texts": [""]}, 400, "Empty", "texts must not be empty"),
        ({"query": "word1", "texts": ["word2", ""]}, 400, "Empty", "texts[1] must not be empty"),
        ({"query": "", "texts": ["word2"]}, 400, "Empty", "query must not be empty"),
        ({"query": "word1", "texts": []}, 400, "Empty", "texts must not be empty"),
        ({"texts": ["word2"]}, 422, "Validation", "query is missing"),
        ({"query": "word1"}, 422, "Validation", "texts or documents must be there"),
        ({"query": "word1", "texts": ["word2"], "documents": ["word2"]}, 422, "Validation", "leave one of them out"),
        ({"query": "word1", "texts": "word2"}, 422, "Validation", "texts"),
        ({"query": ["word1"], "texts": ["word2"]}, 422, "Validation", "query"),
        ({"query": "word1", "texts": ["word2", 5]}, 422, "Validation", "texts[1]"),
        ({"query": "word1", "texts": ["word2"], "raw_scores": "yes"}, 422, "Validation", "raw_scores"),
        (
            {"query": "word1", "texts": ["word2"], "truncation_direction": "up"},
            422,
            "Validation",
            "truncation_direction",
        ),
        ({"query": "word1", "texts": MANY}, 422, "Validation", "texts has 9 items; the limit is 8"),
        ({"query": "word1", "texts": ["word2"], "model": "nobody"}, 404, "Validation", "'nobody' does not exist"),
        ({"query": "word1", "texts": ["word2"], "model": "classifier"}, 422, "Validation", "its task is classify"),
        ({"query": "word1", "texts": ["word2", LONG]}, 422, "Validation", "or set truncate to true"),
        ({"query": "word1", "documents": ["word2"], "top_n": -1}, 422, "Validation", "top_n"),
        ([], 422, "Validation", "the body must be a JSON object"),
    ],
)
async def test_of_tei_and_of_the_shared_path(server: Server, body: Any, status: int, kind: str, said: str) -> None:
    response = await server.client.post("/rerank", json=body)
    check_tei(response, status, kind, said)
    assert response.json()["message"] == response.json()["error"]


@pytest.mark.parametrize(
    ("inputs", "fields", "status", "kind", "said"),
    [
        (None, {}, 422, "Validation", "inputs: should be an object"),
        ({"sentences": ["word1"]}, {}, 422, "Validation", "inputs"),
        ({"source_sentence": "word1", "sentences": "word2"}, {}, 422, "Validation", "inputs"),
        ({"source_sentence": "word1", "sentences": []}, {}, 400, "Empty", "sentences must not be empty"),
        ({"source_sentence": "", "sentences": ["word1"]}, {}, 400, "Empty", "source_sentence must not be empty"),
        ({"source_sentence": "word1", "sentences": ["word2"] * 8}, {}, 422, "Validation", "have 9 items"),
        ({"source_sentence": LONG, "sentences": ["word1"]}, {}, 422, "Validation", "or set truncate to true"),
        ({"source_sentence": "word1", "sentences": ["word2"]}, {"model": "ranker"}, 422, "Validation", "classify"),
        (
            {"source_sentence": "word1", "sentences": ["word2"]},
            {"parameters": {"prompt_name": "nobody"}},
            *(422, "Validation", "prompt_name 'nobody'"),
        ),
        (
            {"source_sentence": "word1", "sentences": ["word2"]},
            {"parameters": {"truncate": 5}},
            422,
            "Validation",
            "parameters",
        ),
    ],
)
async def test_of_similarity(
    server: Server, inputs: Any, fields: dict[str, Any], status: int, kind: str, said: str
) -> None:
    response = await server.client.post("/similarity", json={"inputs": inputs, **fields})
    check_tei(response, status, kind, said)
    assert server.state.models["embedder"].admission.num_inputs == 0


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [
        ({"query": "word1", "documents": [""]}, 400, "empty_input", "documents must not be empty"),
        (
            {"query": "word1", "documents": ["word2", {"text": ""}]},
            400,
            "empty_input",
            "documents[1] must not be empty",
        ),
        ({"query": "", "documents": ["word2"]}, 400, "empty_input", "query must not be empty"),
        ({"query": "word1", "documents": []}, 400, "empty_input", "documents must not be empty"),
        ({"documents": ["word2"]}, 400, "invalid_value", "query is missing"),
        ({"query": "word1"}, 400, "invalid_value", "documents is missing"),
        ({"query": "word1", "documents": "word2"}, 400, "invalid_value", "documents"),
        ({"query": "word1", "documents": ["word2", 5]}, 400, "invalid_value", "documents"),
        (
            {"query": "word1", "documents": [{"title": "word2"}]},
            400,
            "invalid_value",
            "documents[0] has no field 'text'",
        ),
        ({"query": "word1", "documents": ["word2"], "top_n": "all"}, 400, "invalid_value", "top_n"),
        (
            {"query": "word1", "documents": ["word2"], "max_tokens_per_doc": 0},
            400,
            "invalid_value",
            "max_tokens_per_doc",
        ),
        ({"query": "word1", "documents": ["word2"], "priority": 3}, 403, "forbidden", "priority"),
        ({"query": "word1", "documents": MANY}, 400, "invalid_value", "documents has 9 items; the limit is 8"),
        ({"query": "word1", "documents": ["word2"], "model": "nobody"}, 404, "model_not_found", "does not exist"),
        ({"query": "word1", "documents": ["word2"], "model": "classifier"}, 400, "wrong_task", "its task is classify"),
    ],
)
async def test_of_cohere_and_vllm(server: Server, path: str, body: Any, status: int, code: str, said: str) -> None:
    check_shared(await server.client.post(path, json=body), status, code, said)


@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [
        ({"text_1": "word1", "text_2": ""}, 400, "empty_input", "text_2 must not be empty"),
        ({"text_1": "word1", "text_2": []}, 400, "empty_input", "text_2 must not be empty"),
        ({"text_1": "word1"}, 400, "invalid_value", "must both be there"),
        ({"queries": "word1", "text_2": "word2"}, 400, "invalid_value", "must both be there"),
        (
            {"text_1": ["word1", "word2"], "text_2": "word3"},
            400,
            "invalid_value",
            "text_1 has 2 texts and text_2 has 1",
        ),
        ({"text_1": 5, "text_2": "word2"}, 400, "invalid_value", "text_1"),
        ({"text_1": "word1", "text_2": MANY}, 400, "invalid_value", "text_2 has 9 items"),
        ({"text_1": "word1", "text_2": "word2", "model": "nobody"}, 404, "model_not_found", "does not exist"),
        ({"text_1": "word1", "text_2": "word2", "model": "classifier"}, 400, "wrong_task", "its task is classify"),
        ({"text_1": "word1", "text_2": LONG}, 400, "context_length_exceeded", "tokens; the limit is 16"),
    ],
)
async def test_of_scores(server: Server, body: Any, status: int, code: str, said: str) -> None:
    check_openai(await server.client.post("/score", json=body), status, code, said)


async def test_of_the_engine(server: Server) -> None:
    server.engines["ranker"].error = EngineFailure("step")
    check_tei(await server.client.post("/rerank", json={"query": "word1", "texts": ["word2"]}), 500, "Backend", "step")
    body = {"query": "word1", "documents": ["word2"]}
    check_shared(await server.client.post("/v2/rerank", json=body), 500, "engine_failure", "step")
    server.embed.error = EngineFailure("step")
    check_shared(
        await server.client.post("/v2/rerank", json={**body, "model": "embedder"}), 500, "engine_failure", "step"
    )
    for model in ("ranker", "embedder"):
        assert server.state.models[model].admission.num_inputs == 0


async def test_several_cross_encoders_are_told_apart(make_server: MakeServer) -> None:
    server = make_server(others={"ranker": RANKER, "other": RANKER})
    response = await server.client.post("/v1/rerank", json={"query": "word1", "documents": ["word2"]})
    check_shared(response, 400, "invalid_value", "name one of them in 'model': ranker, other")
