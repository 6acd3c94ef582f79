"""Unmodified clients against a running server: each gets what a plain request gets, number by number."""

import base64
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.running_server import RunningServer

pytestmark = pytest.mark.clients

TEXTS = ["Clara Schumann lived in Leipzig.", "Padding is waste", "ein dritter Text: 42"]
QUERY = "Where did she live?"
GIVEN = {
    "texts": TEXTS,
    "query": QUERY,
    "ids": [[2, 40, 41, 42, 3], [2, 50, 3], [2, 60, 61, 62, 63, 64, 3]],
    "model": "all-MiniLM-L6-v2",
    **{name: name for name in ("ranker", "classifier", "ner", "bert", "squad", "writer")},
    **{name: name for name in ("translator", "summarizer")},
    "masked": "a b [MASK] d",
}
RunClient = Callable[[Path, str, Any], Any]
EMPTY = "must not be empty"


class Plain:
    """What requests of the standard library get."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server

    def post(self, path: str, **body: Any) -> Any:
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self.server.url + path, json.dumps(body).encode(), headers)
        status, answer = self.server.send(request)
        assert status == 200, answer
        return json.loads(answer)

    def embed(self, inputs: object = TEXTS, **wanted: Any) -> Any:
        data = self.post("/v1/embeddings", input=inputs, model=GIVEN["model"], **wanted)["data"]
        return [item["embedding"] for item in data]

    def rank(self) -> list[list[float]]:
        return [[rank["index"], rank["score"]] for rank in self.post("/rerank", query=QUERY, texts=TEXTS)]

    def infer(self, name: str, inputs: Any = TEXTS[0], **parameters: Any) -> Any:
        return self.post(f"/models/{GIVEN[name]}", inputs=inputs, parameters=parameters)

    def write(self) -> str:
        messages = [{"role": "user", "content": "Hello"}]
        body = {"model": GIVEN["writer"], "messages": messages, "max_tokens": 8, "temperature": 0}
        answer: str = self.post("/v1/chat/completions", **body)["choices"][0]["message"]["content"]
        return answer


@pytest.fixture
def plain(server: RunningServer) -> Plain:
    return Plain(server)


def check_same(found: Any, expected: Any) -> None:
    """Numbers of float32 that are written as float64 by some clients."""
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def check_alike(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Objects, of which a client may know more fields than are there."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert {name: value for name, value in ours.items() if value is not None} == pytest.approx(theirs)


def normalize(rows: Any) -> Any:
    return np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)


def test_openai(python: Path, run_client: RunClient, plain: Plain) -> None:
    found = run_client(python, "openai_client.py", GIVEN)
    assert set(found["models"]) >= {GIVEN["model"], "ranker", "writer"}
    expected = plain.embed()
    check_same(found["as base64"]["vectors"], expected)
    check_same(found["as numbers"]["vectors"], expected)
    check_same(found["shortened"]["vectors"], plain.embed(dimensions=16))
    check_same(found["of ids"]["vectors"], plain.embed(GIVEN["ids"]))
    assert found["of ids"]["num_tokens"] == sum(map(len, GIVEN["ids"]))
    assert found["error"]["param"] == "model" and "'nobody' does not exist" in found["error"]["message"]
    assert found["chat"] == found["streamed"] == plain.write()
    assert found["usage"] == [8, 8] and found["completion"]["completion_tokens"] == 4


def test_cohere(python: Path, run_client: RunClient, plain: Plain) -> None:
    found = run_client(python, "cohere_client.py", GIVEN)
    expected = np.array(plain.embed())
    check_same(found["first"], expected)
    check_same(found["second"], expected)
    check_same(found["first of many"], np.tile(expected, (40, 1)))
    check_same(found["second of inputs"], plain.embed(dimensions=16))
    for version in ("first", "second"):
        by_type = found[f"{version} by type"]
        check_same(by_type["float"], expected)
        decoded = [np.frombuffer(base64.b64decode(row), "<f4") for row in by_type["base64"]]
        check_same(decoded, expected)
        for kind in ("int8", "uint8", "binary", "ubinary"):
            check_same(by_type[kind], plain.embed(output_dtype=kind))
    check_same(found["first ranks"], plain.rank())
    check_same(found["second ranks"], plain.rank()[:2])
    assert EMPTY in found["error"]


def test_triton(python: Path, run_client: RunClient, plain: Plain) -> None:
    found = run_client(python, "triton_client.py", GIVEN)
    assert found["is live"] and found["is ready"] and found["is model ready"]
    assert "binary_tensor_data" in found["server"]["extensions"]
    assert [tensor["name"] for tensor in found["metadata"]["outputs"]] == ["embeddings"]
    expected = plain.embed()
    for way in ("by default", "of bytes", "as JSON", "later"):
        check_same(found[way], expected)
    check_same(found["of ids"], plain.embed(GIVEN["ids"]))
    check_same(found["of ids as JSON"], plain.embed(GIVEN["ids"]))
    answer = plain.post("/classify", model="classifier", input=TEXTS, use_activation=False)
    check_same(found["logits"], [item["probs"] for item in answer["data"]])
    assert found["error"][0] == "404" and "'nobody' does not exist" in found["error"][1]


def test_triton_over_grpc(python: Path, run_client: RunClient, plain: Plain, grpc_address: str) -> None:
    found = run_client(python, "triton_grpc_client.py", {**GIVEN, "address": grpc_address})
    assert found["is live"] and found["is ready"] and found["is model ready"] and found["is serving"]
    assert found["server"] == "padless" and found["num texts at once"] == 2048
    assert found["outputs"] == ["embeddings"] and GIVEN["model"] in found["models"]
    assert found["num computed"] >= 2 * len(TEXTS)
    expected = plain.embed()
    for way in ("of texts", "of bytes", "later", "in a stream"):
        check_same(found[way], expected)
    check_same(found["of ids"], plain.embed(GIVEN["ids"]))
    answer = plain.post("/classify", model="classifier", input=TEXTS, use_activation=False)
    check_same(found["logits"], [item["probs"] for item in answer["data"]])
    assert [status for status, _ in found["errors"]] == [
        *("StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT", "StatusCode.FAILED_PRECONDITION")
    ]
    assert "'nobody' does not exist" in found["errors"][0][1] and "must not be empty" in found["errors"][1][1]
    assert "its task is generate" in found["errors"][2][1]


def test_huggingface_hub(any_python: Path, run_client: RunClient, plain: Plain) -> None:
    """Of both its major versions: the other one is what mteb brings along."""
    found = run_client(any_python, "huggingface_client.py", GIVEN)
    expected = plain.embed()
    check_same(found["features"], expected)
    check_same(found["features of one"], normalize(expected[:1]))
    vectors = normalize(expected)
    np.testing.assert_allclose(found["similarity"], vectors[1:] @ vectors[0], atol=1e-6)
    check_alike(found["labels"], plain.infer("classifier")[0])
    check_alike(found["best label"], plain.infer("classifier", top_k=1, function_to_apply="sigmoid")[0])
    check_alike(found["entities"], plain.infer("ner", aggregation_strategy="simple"))
    labels = {"candidate_labels": ["travel", "music"]}
    check_alike(found["topics"], plain.infer("classifier", **labels))
    others = {"multi_label": True, "hypothesis_template": "About {}."}
    check_alike(found["some topics"], plain.infer("classifier", **labels, **others))
    check_alike(found["words"], plain.infer("bert", GIVEN["masked"]))
    check_alike(found["some words"], plain.infer("bert", GIVEN["masked"], targets=["a", "b"], top_k=2))
    asked = {"question": QUERY, "context": TEXTS[0]}
    check_alike(found["answer"], [plain.infer("squad", asked)])
    check_alike(found["answers"], plain.infer("squad", asked, top_k=2, max_answer_len=4))
    check_alike([found["translation"]], plain.infer("translator"))
    check_alike([found["best of beams"]], plain.infer("translator", num_beams=3, max_new_tokens=9))
    summary = plain.infer("summarizer", clean_up_tokenization_spaces=True, truncation="longest_first")
    check_alike([found["summary"]], summary)
    assert found["chat"] == plain.write()
    assert found["error"][0] == 400 and EMPTY in found["error"][1]


def test_langchain_openai(python: Path, run_client: RunClient, plain: Plain) -> None:
    found = run_client(python, "langchain_openai_client.py", GIVEN)
    expected = plain.embed()
    check_same(found["documents"], expected)
    check_same(found["later"], expected)
    check_same(found["query"], expected[0])
    check_same(found["shortened"], plain.embed(dimensions=16))
    assert found["chat"] == found["streamed"] == plain.write()
    assert found["num_tokens"] == 8


def test_langchain_huggingface(python: Path, run_client: RunClient, plain: Plain) -> None:
    found = run_client(python, "langchain_huggingface_client.py", GIVEN)
    expected = plain.embed()
    check_same(found["documents"], expected)
    check_same(found["later"], expected)
    check_same(found["query"], expected[0])


def test_llama_index(python: Path, run_client: RunClient, plain: Plain) -> None:
    found = run_client(python, "llama_index_client.py", GIVEN)
    expected = plain.post("/embed", inputs=TEXTS)
    check_same(found["documents"], expected)
    check_same(found["later"], expected)
    check_same(found["query"], expected[0])
    check_same(found["ranks"], plain.rank()[:2])


def test_mteb(mteb_python: Path, run_client: RunClient) -> None:
    """All its synthetic tasks of text; of those a cross-encoder can do the ones that name candidates."""
    found = run_client(mteb_python, "mteb_client.py", GIVEN)
    assert len(found["embedder"]) > 20 and not any(found["embedder"].values()), found["embedder"]
    reranking = {name: failure for name, failure in found["ranker"].items() if "Reranking" in name}
    assert len(reranking) > 3 and not any(reranking.values()), reranking
