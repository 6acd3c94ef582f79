"""`/rerank`, `/v1/rerank`, `/v2/rerank`, `/similarity` and `/score`, each in its protocol's words."""

from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import CLS, EMBED_DIM, EMBEDDER, MAX_TOKENS, RANKER, SEP, VOCAB, MakeServer, Server, compute_row
from test_multi_vector_routes import COLBERT

from server.tasks.classify import compute_sigmoid

pytestmark = pytest.mark.anyio

DOCUMENTS = ["word2", "word3 word4", "word5 word6 word7", "word8"]
LONG = " ".join(f"word{index}" for index in range(40))


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    """With a cross-encoder."""
    return make_server(others={"ranker": RANKER}, max_client_batch_size=8)


def ids(text: str) -> list[int]:
    return [VOCAB.index(word) for word in text.split()]


def pair(query: str, document: str) -> list[int]:
    return [CLS, *ids(query), SEP, *ids(document), SEP]


def logits(query: str, documents: list[str]) -> np.ndarray:
    """float32 `[n]`"""
    return np.array([compute_row(np.array(pair(query, each)), 1)[0] for each in documents])


def cosines(query: str, documents: list[str]) -> np.ndarray:
    rows = [compute_row(np.array([CLS, *ids(text), SEP]), EMBED_DIM) for text in [query, *documents]]
    return np.array([rows[0] @ row for row in rows[1:]])


async def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return await server.client.post(path, json=body)


async def ask(server: Server, path: str, **body: Any) -> Any:
    response = await post(server, path, **body)
    assert response.status_code == 200, response.text
    return response.json()


def check_ranks(results: list[dict[str, Any]], name: str, expected: np.ndarray) -> None:
    """All of them, best first."""
    order = np.argsort(-expected, kind="stable")
    assert [result["index"] for result in results] == order.tolist()
    np.testing.assert_allclose([result[name] for result in results], expected[order], rtol=1e-5, atol=1e-6)


async def test_texts_are_ranked_for_tei(server: Server) -> None:
    answer = await ask(server, "/rerank", query="word1", texts=DOCUMENTS)
    check_ranks(answer, "score", compute_sigmoid(logits("word1", DOCUMENTS)))
    assert all(set(rank) == {"index", "score"} for rank in answer)
    (job,) = server.engines["ranker"].calls
    assert job == [pair("word1", document) for document in DOCUMENTS]
    assert server.engines["ranker"].types[0][0] == [0, 0, 0, 1, 1]


async def test_raw_scores_and_texts_for_tei(server: Server) -> None:
    answer = await ask(server, "/rerank", query="word1", texts=DOCUMENTS, raw_scores=True, return_text=True)
    check_ranks(answer, "score", logits("word1", DOCUMENTS))
    assert all(rank["text"] == DOCUMENTS[rank["index"]] for rank in answer)


@pytest.mark.parametrize(("path", "version"), [("/rerank", "1"), ("/v1/rerank", "1"), ("/v2/rerank", "2")])
async def test_documents_are_ranked_for_cohere_jina_and_vllm(server: Server, path: str, version: str) -> None:
    answer = await ask(server, path, query="word1", documents=DOCUMENTS)
    check_ranks(answer["results"], "relevance_score", compute_sigmoid(logits("word1", DOCUMENTS)))
    num_tokens = sum(len(pair("word1", document)) for document in DOCUMENTS)
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    assert (answer["model"], answer["object"]) == ("ranker", "list")
    assert answer["meta"]["api_version"] == {"version": version}
    assert answer["meta"]["tokens"]["input_tokens"] == num_tokens
    for result in answer["results"]:
        expected = {"text": DOCUMENTS[result["index"]]} if version == "1" else None
        assert result.get("document") == expected and ("document" in result) is (version == "1")


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
async def test_documents_come_back_as_the_body_says(server: Server, path: str) -> None:
    for wanted in (True, False):
        answer = await ask(server, path, query="word1", documents=["word2"], return_documents=wanted)
        assert ("document" in answer["results"][0]) is wanted


@pytest.mark.parametrize(("top_n", "count"), [(0, 4), (None, 4), (1, 1), (3, 3), (9, 4)])
async def test_top_n(server: Server, top_n: int | None, count: int) -> None:
    answer = await ask(server, "/v1/rerank", query="word1", documents=DOCUMENTS, top_n=top_n)
    assert len(answer["results"]) == count
    assert answer["results"][0]["index"] == int(np.argmax(logits("word1", DOCUMENTS)))


async def test_documents_may_be_objects(server: Server) -> None:
    documents = [{"text": "word2", "title": "word3", "id": "7"}, {"text": "word4", "title": "word5"}]
    answer = await ask(server, "/v1/rerank", query="word1", documents=[documents[0], "word4"])
    assert server.engines["ranker"].calls[0] == [pair("word1", "word2"), pair("word1", "word4")]
    returned = {result["index"]: result["document"] for result in answer["results"]}
    assert returned == {0: documents[0], 1: {"text": "word4"}}
    await ask(server, "/v1/rerank", query="word1", documents=documents, rank_fields=["title", "text"])
    assert server.engines["ranker"].calls[1] == [pair("word1", "word3 word2"), pair("word1", "word5 word4")]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
async def test_pairs_that_are_too_long_are_cut_longest_first(server: Server, path: str) -> None:
    await ask(server, path, query="word1 word2", documents=[LONG, "word3"])
    cut = " ".join(LONG.split()[: MAX_TOKENS - 5])
    assert server.engines["ranker"].calls[0] == [pair("word1 word2", cut), pair("word1 word2", "word3")]


async def test_documents_are_cut_where_the_request_says(server: Server) -> None:
    documents = ["word1 unables word2", "word3"]
    await ask(server, "/v2/rerank", query="word9", documents=documents, max_tokens_per_doc=3)
    cut = [CLS, *ids("word9"), SEP, *ids("word1 un ##able"), SEP]
    assert server.engines["ranker"].calls[0] == [cut, pair("word9", "word3")]
    await ask(server, "/v2/rerank", query="word9", documents=documents, max_tokens_per_doc=4096)
    assert len(server.engines["ranker"].calls[1][0]) == 9
    assert server.state.models["ranker"].admission.num_inputs == 0


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [({"truncate": True}, slice(0, 11)), ({"truncate": True, "truncation_direction": "Left"}, slice(29, 40))],
)
async def test_tei_truncates_on_request(server: Server, truncation: dict[str, Any], kept: slice) -> None:
    await ask(server, "/rerank", query="word1 word2", texts=[LONG], **truncation)
    cut = " ".join(LONG.split()[kept])
    assert server.engines["ranker"].calls[0] == [pair("word1 word2", cut)]


async def test_an_embedder_ranks_by_cosines(server: Server) -> None:
    for path in ("/v1/rerank", "/v2/rerank"):
        answer = await ask(server, path, model="embedder", query="word1", documents=DOCUMENTS)
        check_ranks(answer["results"], "relevance_score", cosines("word1", DOCUMENTS))
    answer = await ask(server, "/rerank", model="embedder", query="word1", texts=DOCUMENTS)
    check_ranks(answer, "score", cosines("word1", DOCUMENTS))


async def test_both_jobs_of_a_call_count(server: Server) -> None:
    answer = await ask(server, "/v1/rerank", model="embedder", query="word1", documents=DOCUMENTS)
    num_tokens = sum(len(ids(text)) + 2 for text in ["word1", *DOCUMENTS])
    assert answer["usage"]["total_tokens"] == num_tokens
    assert server.sum_samples("padless_tokens_total", model="embedder") == num_tokens
    assert server.sum_samples("padless_inputs_total", model="embedder") == 1 + len(DOCUMENTS)
    assert server.state.models["embedder"].admission.num_inputs == 0


async def test_an_embedder_has_prompts_for_both_sides(make_server: MakeServer) -> None:
    prompts = {"query": "word10 ", "passage": "word11 word12 ", "other": "word13 "}
    info = replace(EMBEDDER, prompts=prompts, default_prompt_name="other")
    server = make_server(others={"prompted": info})
    await ask(server, "/v1/rerank", model="prompted", query="word1", documents=["word2", "word3"])
    assert server.engines["prompted"].calls == [
        [[CLS, *ids("word10 word1"), SEP]],
        [[CLS, *ids("word11 word12 word2"), SEP], [CLS, *ids("word11 word12 word3"), SEP]],
    ]


async def test_similarity(server: Server) -> None:
    inputs = {"source_sentence": "word1", "sentences": DOCUMENTS}
    answer = await ask(server, "/similarity", inputs=inputs)
    np.testing.assert_allclose(answer, cosines("word1", DOCUMENTS), rtol=1e-5, atol=1e-6)
    cut = {"source_sentence": LONG, "sentences": ["word1"]}
    await ask(server, "/similarity", inputs=cut, parameters={"truncate": True, "truncation_direction": "Left"})
    assert server.embed.calls[2] == [[CLS, *ids(" ".join(LONG.split()[-14:])), SEP]]


async def test_similarity_takes_one_prompt_for_all(make_server: MakeServer) -> None:
    info = replace(EMBEDDER, prompts={"query": "word10 ", "other": "word13 "}, default_prompt_name="other")
    server = make_server(others={"prompted": info})
    inputs = {"source_sentence": "word1", "sentences": ["word2"]}
    for parameters, word in (({}, "word13"), ({"prompt_name": "query"}, "word10")):
        await ask(server, "/similarity", model="prompted", inputs=inputs, parameters=parameters)
        assert server.engines["prompted"].calls[-2:] == [
            [[CLS, *ids(f"{word} {text}"), SEP]] for text in ("word1", "word2")
        ]


SIDES = [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(("first", "second"), SIDES)
async def test_scores_for_vllm(server: Server, path: str, first: str, second: str) -> None:
    answer = await ask(server, path, **{first: "word1", second: DOCUMENTS})
    assert [item["index"] for item in answer["data"]] == [0, 1, 2, 3]
    assert {item["object"] for item in answer["data"]} == {"score"}
    scores = [item["score"] for item in answer["data"]]
    np.testing.assert_allclose(scores, compute_sigmoid(logits("word1", DOCUMENTS)), rtol=1e-5)
    assert answer["usage"]["total_tokens"] == sum(len(pair("word1", document)) for document in DOCUMENTS)


async def test_scores_in_pairs(server: Server) -> None:
    queries = ["word9", "word1", "word2", "word3"]
    for model, compute in (("ranker", lambda *pair: compute_sigmoid(logits(*pair))), ("embedder", cosines)):
        answer = await ask(server, "/score", model=model, text_1=queries, text_2=DOCUMENTS)
        expected = [compute(query, [document])[0] for query, document in zip(queries, DOCUMENTS, strict=True)]
        np.testing.assert_allclose([item["score"] for item in answer["data"]], expected, rtol=1e-5, atol=1e-6)


async def test_scores_are_on_the_directorys_own_scale(make_server: MakeServer) -> None:
    server = make_server(others={"plain": replace(RANKER, activation="identity"), "ranker": RANKER})
    raw = logits("word1", ["word2"])
    for model, fields, expected in (
        ("plain", {}, raw),
        ("ranker", {"use_activation": False}, raw),
        ("ranker", {"use_activation": True}, compute_sigmoid(raw)),
    ):
        answer = await ask(server, "/score", model=model, text_1="word1", text_2="word2", **fields)
        np.testing.assert_allclose(answer["data"][0]["score"], expected[0], rtol=1e-6)
    answer = await ask(server, "/v1/rerank", model="plain", query="word1", documents=["word2"])
    np.testing.assert_allclose(answer["results"][0]["relevance_score"], compute_sigmoid(raw)[0], rtol=1e-6)


async def test_scores_of_what_is_cut(server: Server) -> None:
    body = {"text_1": "word1 word2", "text_2": LONG}
    assert (await post(server, "/score", **body)).status_code == 400
    for most in (-1, MAX_TOKENS):
        await ask(server, "/score", **body, truncate_prompt_tokens=most)


@pytest.mark.parametrize(
    ("most", "side", "query", "document"),
    [
        (8, None, "word1 word2", "word3 word4 word5"),
        (8, "left", "word1 word2", "word5 word6 word7"),
        (6, None, "word1", "word3 word4"),
        (6, "left", "word2", "word6 word7"),
        (10, None, "word1 word2", "word3 word4 word5 word6 word7"),
    ],
)
async def test_pairs_are_cut_to_fewer_tokens(
    server: Server, most: int, side: str | None, query: str, document: str
) -> None:
    """The longer text first, special tokens included; also where the query is read once for several documents."""
    cut = {"truncate_prompt_tokens": most, "truncation_side": side}
    text = "word3 word4 word5 word6 word7"
    answer = await ask(server, "/score", text_1="word1 word2", text_2=text, **cut)
    np.testing.assert_allclose(answer["data"][0]["score"], compute_sigmoid(logits(query, [document]))[0], rtol=1e-6)
    assert answer["usage"]["prompt_tokens"] == len(pair(query, document)) <= most
    answer = await ask(server, "/v1/rerank", query="word1 word2", documents=[text, text], **cut)
    assert answer["usage"]["prompt_tokens"] == 2 * len(pair(query, document))


async def test_sides_that_are_read_by_themselves_are_cut_by_themselves(make_server: MakeServer) -> None:
    server = make_server(others={"colbert": COLBERT})
    for model in ("embedder", "colbert"):
        body = {"model": model, "query": "word1 " * 9, "documents": ["word2 " * 9, "word3"]}
        await ask(server, "/rerank", **body, truncate_prompt_tokens=4)
    (queries, documents), (filled, cut) = server.engines["embedder"].calls, server.engines["colbert"].calls
    assert [len(ids) for ids in (*queries, *documents)] == [4, 4, 3]
    assert [len(ids) for ids in (*filled, *cut)] == [8, 4, 3], "a query is filled up all the same"


async def test_without_a_cross_encoder_the_embedder_ranks(make_server: MakeServer) -> None:
    server = make_server()
    assert (await ask(server, "/v1/rerank", query="word1", documents=["word2"]))["model"] == "embedder"
