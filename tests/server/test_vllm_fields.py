"""What the bodies of all of vLLM's pooling routes may hold means the same on each of them."""

from dataclasses import replace
from time import time
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import CLS, EMBEDDER, MAX_TOKENS, RANKER, SEP, VOCAB, MakeServer, Server, compute_row

from server.tasks.classify import compute_sigmoid

pytestmark = pytest.mark.anyio

LONG = " ".join(f"word{index}" for index in range(MAX_TOKENS))
BODIES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"model": "embedder", "input": LONG},
    "/pooling": {"model": "embedder", "input": LONG},
    "/classify": {"model": "classifier", "input": LONG},
    "/score": {"model": "ranker", "text_1": "word1", "text_2": LONG},
    "/rerank": {"model": "ranker", "query": "word1", "documents": [LONG]},
    "/v1/rerank": {"model": "ranker", "query": "word1", "documents": [LONG]},
    "/v2/rerank": {"model": "ranker", "query": "word1", "documents": [LONG]},
}


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    return make_server(others={"ranker": RANKER, "plain": replace(EMBEDDER, normalize=False)})


async def post(server: Server, path: str, **fields: Any) -> httpx.Response:
    return await server.client.post(path, json=BODIES[path] | fields)


@pytest.mark.parametrize("path", BODIES)
async def test_what_is_cut(server: Server, path: str) -> None:
    """On the right, unless the body says left: of pairs the longer side."""
    engine = server.engines[BODIES[path]["model"]]
    for side, first, last in ((None, "word0", None), ("left", None, "word15")):
        response = await post(server, path, truncate_prompt_tokens=-1, truncation_side=side)
        assert response.status_code == 200, response.text
        (ids,) = engine.calls[-1]
        assert len(ids) == MAX_TOKENS
        assert (VOCAB.index("word0") in ids) is (first is not None)
        assert (VOCAB.index("word15") in ids) is (last is not None)


@pytest.mark.parametrize("path", BODIES)
async def test_limits_that_nobody_can_mean(server: Server, path: str) -> None:
    for most in (0, -2, MAX_TOKENS + 1):
        response = await post(server, path, truncate_prompt_tokens=most)
        assert response.status_code in (400, 422) and "truncate_prompt_tokens" in response.text


@pytest.mark.parametrize("path", BODIES)
async def test_the_request_has_the_name_that_the_body_gives_it(server: Server, path: str) -> None:
    response = await post(server, path, truncate_prompt_tokens=-1, request_id="mine-1")
    assert response.headers["x-request-id"] == "mine-1"


@pytest.mark.parametrize("path", ["/pooling", "/classify", "/score"])
async def test_created_is_when_it_was_answered(server: Server, path: str) -> None:
    name = BODIES[path]["model"]
    server.state.models[name] = replace(server.state.models[name], created_s=5)
    answer = (await post(server, path, truncate_prompt_tokens=-1)).json()
    assert abs(answer["created"] - time()) < 100


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_scores_without_activation(server: Server, path: str) -> None:
    body = {"model": "ranker", "query": "word1", "documents": ["word2"]}
    ids = [CLS, VOCAB.index("word1"), SEP, VOCAB.index("word2"), SEP]
    (logit,) = compute_row(np.array(ids), 1)
    for wanted, score in ((False, logit), (True, compute_sigmoid(np.array([[logit]]))[0, 0])):
        (result,) = (await server.client.post(path, json={**body, "use_activation": wanted})).json()["results"]
        np.testing.assert_allclose(result["relevance_score"], score, rtol=1e-6)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling"])
async def test_the_activation_of_an_embedder_is_its_scaling(server: Server, path: str) -> None:
    response = await post(server, path, input="word1", use_activation=False)
    assert response.status_code == 400 and "use_activation cannot be false" in response.json()["error"]["message"]
    body = {"model": "plain", "input": "word1", "dimensions": 3}
    for wanted, is_scaled in ((True, True), (False, False), (None, False)):
        answer = await server.client.post(path, json={**body, "use_activation": wanted})
        (item,) = answer.json()["data"]
        length = np.linalg.norm(item.get("embedding") or item["data"])
        assert bool(np.isclose(length, 1)) is is_scaled
