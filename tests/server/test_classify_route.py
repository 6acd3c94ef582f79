"""`/classify` as vLLM answers it."""

from typing import Any

import numpy as np
import pytest
from conftest import CLS, LABELS, SEP, VOCAB, MakeServer, Server, compute_row

pytestmark = pytest.mark.anyio

WORD1 = VOCAB.index("word1")


async def ask(server: Server, given: Any, **options: Any) -> Any:
    response = await server.client.post("/classify", json={"input": given, **options})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("given", ["word1", ["word1"], [CLS, WORD1, SEP], [[CLS, WORD1, SEP]]])
async def test_probabilities_in_the_order_of_the_labels(server: Server, given: Any) -> None:
    answer = await ask(server, given)
    logits = compute_row(np.array([CLS, WORD1, SEP]), 3).astype(np.float64)
    (found,) = answer["data"]
    np.testing.assert_allclose(found["probs"], np.exp(logits) / np.exp(logits).sum(), rtol=1e-5)
    assert (found["index"], found["label"], found["num_classes"]) == (0, LABELS[int(logits.argmax())], 3)
    assert (answer["object"], answer["model"]) == ("list", "classifier")
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


async def test_logits(server: Server) -> None:
    (found,) = (await ask(server, "word1", use_activation=False))["data"]
    np.testing.assert_allclose(found["probs"], compute_row(np.array([CLS, WORD1, SEP]), 3), rtol=1e-6)


async def test_several_keep_their_order(server: Server) -> None:
    one, other = (await ask(server, ["word1", "word2"]))["data"]
    assert (one["index"], other["index"]) == (0, 1)
    assert other["probs"] == (await ask(server, "word2"))["data"][0]["probs"]


async def test_special_tokens_may_be_left_out(server: Server) -> None:
    await ask(server, "word1", add_special_tokens=False)
    assert server.classify.calls == [[[WORD1]]]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "input is missing"),
        ({"input": []}, 400, "input must not be empty"),
        ({"input": 3}, 400, "input must be a text, a list of texts"),
        ({"input": [999]}, 400, "has the token id 999"),
        ({"input": "a", "use_activation": "no"}, 400, "use_activation"),
        ({"input": "a", "model": "other"}, 404, "model 'other' does not exist"),
        ({"input": "a", "model": "embedder"}, 400, "its task is embed"),
    ],
)
async def test_bad_requests(server: Server, body: Any, status: int, words: str) -> None:
    response = await server.client.post("/classify", json=body)
    assert response.status_code == status and words in response.json()["error"]["message"]


async def test_priority_needs_leave(server: Server, make_server: MakeServer) -> None:
    response = await server.client.post("/classify", json={"input": "word1", "priority": -1})
    assert response.status_code == 403
    await ask(make_server(http={"allow_priority": True}), "word1", priority=-1)
