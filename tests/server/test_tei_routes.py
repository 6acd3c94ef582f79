"""`/predict` and `/tokenize` as text-embeddings-inference answers them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import CLS, EMBEDDER, LABELS, MAX_TOKENS, SEP, VOCAB, MakeServer, Server, compute_row

pytestmark = pytest.mark.anyio


def ids(*words: str) -> list[int]:
    return [VOCAB.index(word) for word in words]


async def predict(server: Server, inputs: Any, **options: Any) -> Any:
    response = await server.client.post("/predict", json={"inputs": inputs, **options})
    assert response.status_code == 200, response.text
    return response.json()


async def test_one_text_gives_labels_best_first(server: Server) -> None:
    answer = await predict(server, "word1")
    logits = compute_row(np.array([CLS, *ids("word1"), SEP]), 3).astype(np.float64)
    scores = np.exp(logits) / np.exp(logits).sum()
    assert [item["label"] for item in answer] == [LABELS[index] for index in np.argsort(-scores)]
    np.testing.assert_allclose([item["score"] for item in answer], np.sort(scores)[::-1], rtol=1e-5)


async def test_raw_scores_are_the_logits(server: Server) -> None:
    answer = await predict(server, "word1", raw_scores=True)
    logits = compute_row(np.array([CLS, *ids("word1"), SEP]), 3)
    np.testing.assert_allclose([item["score"] for item in answer], np.sort(logits)[::-1], rtol=1e-6)


async def test_two_strings_are_a_pair(server: Server) -> None:
    answer = await predict(server, ["word1", "word2 word3"])
    assert server.classify.calls == [[[CLS, *ids("word1"), SEP, *ids("word2", "word3"), SEP]]]
    assert server.classify.types == [[[0, 0, 0, 1, 1, 1]]]
    assert isinstance(answer[0], dict)


async def test_a_list_of_one_string_is_a_single_input(server: Server) -> None:
    assert isinstance((await predict(server, ["word1"]))[0], dict)
    assert server.classify.types == [[None]]


async def test_a_batch_of_texts_and_pairs(server: Server) -> None:
    answer = await predict(server, [["word1"], ["word1", "word2"], ["word3"]])
    assert [len(item) for item in answer] == [3, 3, 3]
    assert server.classify.calls == [
        [[CLS, *ids("word1"), SEP], [CLS, *ids("word1"), SEP, *ids("word2"), SEP], [CLS, *ids("word3"), SEP]]
    ]
    single = await predict(server, "word3")
    assert answer[2] == single


async def test_a_batch_of_one_is_still_a_batch(server: Server) -> None:
    assert isinstance((await predict(server, [["word1"]]))[0], list)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"truncate": True}, slice(0, 14)),
        ({"truncate": True, "truncation_direction": "Right"}, slice(0, 14)),
        ({"truncate": True, "truncation_direction": "left"}, slice(6, 20)),
        ({"truncate": True, "truncation_direction": "Left"}, slice(6, 20)),
    ],
)
async def test_truncation_is_the_requests_choice(server: Server, options: dict[str, Any], kept: slice) -> None:
    words = [f"word{index}" for index in range(20)]
    await predict(server, " ".join(words), **options)
    assert server.classify.calls == [[[CLS, *ids(*words[kept]), SEP]]]
    assert len(server.classify.calls[0][0]) == MAX_TOKENS


async def test_truncate_false_overrules_the_configuration(make_server: MakeServer) -> None:
    server = make_server(truncation="right")
    text = "word1 " * 20
    assert (await server.client.post("/predict", json={"inputs": text})).status_code == 200
    response = await server.client.post("/predict", json={"inputs": text, "truncate": False})
    assert response.status_code == 422
    assert (
        response.json()["error"]
        == f"inputs has 22 tokens; the limit is {MAX_TOKENS}; shorten it, or set truncate to true"
    )


async def test_the_model_can_be_named(server: Server) -> None:
    assert (await server.client.post("/predict", json={"inputs": "word1", "model": "classifier"})).status_code == 200
    response = await server.client.post("/predict", json={"inputs": "word1", "model": "nobody"})
    assert response.status_code == 404 and response.json()["error_type"] == "Validation"
    response = await server.client.post("/predict", json={"inputs": "word1", "model": "embedder"})
    assert response.status_code == 422 and "/v1/embeddings" in response.json()["error"]


async def test_tokenize(server: Server) -> None:
    response = await server.client.post("/tokenize", json={"inputs": "Word1 unables", "model": "embedder"})
    assert response.status_code == 200
    assert response.json() == [
        [
            {"id": CLS, "text": "[CLS]", "special": True, "start": None, "stop": None},
            {"id": ids("word1")[0], "text": "Word1", "special": False, "start": 0, "stop": 5},
            {"id": ids("un")[0], "text": "un", "special": False, "start": 6, "stop": 8},
            {"id": ids("##able")[0], "text": "able", "special": False, "start": 8, "stop": 12},
            {"id": ids("##s")[0], "text": "s", "special": False, "start": 12, "stop": 13},
            {"id": SEP, "text": "[SEP]", "special": True, "start": None, "stop": None},
        ]
    ]


async def test_tokenize_a_list_without_special_tokens(server: Server) -> None:
    body = {"inputs": ["word1", "word2 word3"], "add_special_tokens": False, "model": "embedder"}
    answer = (await server.client.post("/tokenize", json=body)).json()
    assert [[piece["text"] for piece in item] for item in answer] == [["word1"], ["word2", "word3"]]


async def test_tokenize_asks_for_the_model_where_there_are_several(server: Server) -> None:
    response = await server.client.post("/tokenize", json={"inputs": "word1"})
    assert response.status_code == 422
    assert "embedder" in response.json()["error"] and "classifier" in response.json()["error"]


@pytest.mark.parametrize("inputs", ["", [], ["word1", ""], [["word1"]], 5, ["word1"] * 2049])
async def test_tokenize_refuses(server: Server, inputs: Any) -> None:
    response = await server.client.post("/tokenize", json={"inputs": inputs, "model": "embedder"})
    assert (response.status_code, response.json()["error_type"]) in ((400, "Empty"), (422, "Validation"))
    assert "inputs" in response.json()["error"]
    assert server.state.models["embedder"].admission.num_inputs == 0


async def test_a_prompt_does_not_hide_an_empty_text(make_server: MakeServer) -> None:
    server = make_server(others={"prompted": replace(EMBEDDER, prompts={"query": "word9 "})})
    body = {"inputs": ["word1", ""], "prompt_name": "query", "model": "prompted"}
    response = await server.client.post("/tokenize", json=body)
    assert response.status_code == 400 and "inputs[1] must not be empty" in response.json()["error"]


async def test_all_tokens_of_a_long_text(server: Server) -> None:
    """24,000 characters and more: only the body's size bounds them."""
    body = {"inputs": "word1 " * 20_000, "model": "embedder"}
    (pieces,) = (await server.client.post("/tokenize", json=body)).json()
    assert len(pieces) == 20_002 and pieces[-2]["stop"] == len(body["inputs"]) - 1


async def test_a_pair_may_have_one_empty_side(server: Server) -> None:
    answer = await predict(server, [["word1", "word2"], ["word1", ""], ["", "word2"]])
    assert len(answer) == 3
    assert server.classify.calls[0][1:] == [[CLS, *ids("word1"), SEP, SEP], [CLS, SEP, *ids("word2"), SEP]]


async def test_a_pair_with_two_is_named(server: Server) -> None:
    response = await server.client.post("/predict", json={"inputs": [["word1", ""], ["", ""]]})
    assert (response.status_code, response.json()["error_type"]) == (400, "Empty")
    assert response.json()["error"] == "inputs[1] must not be empty on both sides"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"problem_type": "regression"}, lambda logits: logits),
        ({"activation": "sigmoid"}, lambda logits: 1 / (1 + np.exp(-logits))),
        ({"activation": "identity", "problem_type": "multi_label_classification"}, lambda logits: logits),
    ],
)
async def test_scores_are_what_the_directory_says(server: Server, changes: dict[str, Any], expected: Any) -> None:
    model = server.state.models["classifier"]
    server.state.models["classifier"] = replace(model, info=replace(model.info, **changes))
    logits = compute_row(np.array([CLS, *ids("word1"), SEP]), 3).astype(np.float64)
    answer = await predict(server, "word1")
    scores = expected(logits)
    assert [item["label"] for item in answer] == [LABELS[index] for index in np.argsort(-scores)]
    np.testing.assert_allclose([item["score"] for item in answer], np.sort(scores)[::-1], rtol=1e-5)
