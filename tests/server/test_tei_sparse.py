"""`/embed_sparse` as text-embeddings-inference answers it."""

from typing import Any

import numpy as np
import pytest
from conftest import CLS, MAX_TOKENS, SEP, SPARSE, VOCAB, MakeServer, Server, compute_row

pytestmark = pytest.mark.anyio

WORD1 = VOCAB.index("word1")


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    return make_server(others={"splade": SPARSE})


async def ask(server: Server, inputs: Any, **options: Any) -> Any:
    response = await server.client.post("/embed_sparse", json={"inputs": inputs, **options})
    assert response.status_code == 200, response.text
    return response.json()


def expect(*ids: int) -> list[dict[str, Any]]:
    logits = compute_row(np.array(ids), len(VOCAB))
    return [
        {"index": int(i), "value": pytest.approx(np.log1p(logits[i]), rel=1e-6)} for i in np.flatnonzero(logits > 0)
    ]


@pytest.mark.parametrize("inputs", ["word1", ["word1"], [CLS, WORD1, SEP], [[CLS, WORD1, SEP]]])
async def test_one_input(server: Server, inputs: Any) -> None:
    assert await ask(server, inputs) == [expect(CLS, WORD1, SEP)]


async def test_several_keep_their_order(server: Server) -> None:
    answer = await ask(server, ["word1 word1", "word1"])
    assert answer == [expect(CLS, WORD1, WORD1, SEP), expect(CLS, WORD1, SEP)]


async def test_truncation(server: Server) -> None:
    long = " ".join(["word1"] * MAX_TOKENS)
    response = await server.client.post("/embed_sparse", json={"inputs": long, "truncate": False})
    assert response.status_code == 422 and "or set truncate to true" in response.json()["error"]
    assert await ask(server, long, truncate=True) == [expect(CLS, *[WORD1] * (MAX_TOKENS - 2), SEP)]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 422, "inputs is missing"),
        ({"inputs": []}, 400, "inputs must not be empty"),
        ({"inputs": ""}, 400, "must not be empty"),
        ({"inputs": [999]}, 422, "has the token id 999"),
        ({"inputs": "a", "prompt_name": "other"}, 422, "prompt_name 'other' is not one of this model's"),
        ({"inputs": "a", "truncation_direction": "up"}, 422, "truncation_direction"),
        ({"inputs": "a", "model": "embedder"}, 422, "its task is embed, served by POST /v1/embeddings"),
    ],
)
async def test_bad_requests(server: Server, body: Any, status: int, words: str) -> None:
    response = await server.client.post("/embed_sparse", json=body)
    assert response.status_code == status and words in response.json()["error"]
    assert response.json()["error_type"] in ("Validation", "Empty")


async def test_nan_is_no_answer(server: Server) -> None:
    server.engines["splade"].nan_rows = (0,)
    response = await server.client.post("/embed_sparse", json={"inputs": "word1"})
    assert response.status_code == 500 and response.json()["error_type"] == "Backend"
