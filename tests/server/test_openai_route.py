"""`/v1/embeddings` and `/v1/models`: what comes back for what is right."""

import base64

import numpy as np
import pytest
from conftest import CLS, EMBED_DIM, MAX_TOKENS, SEP, VOCAB, MakeServer, Server, compute_row

pytestmark = pytest.mark.anyio


def id_of(word: str) -> int:
    return VOCAB.index(word)


def expected_row(*words: str) -> np.ndarray:
    return compute_row(np.array([CLS, *map(id_of, words), SEP]), EMBED_DIM)


async def test_one_text(server: Server) -> None:
    response = await server.embed_text("word1 word2")
    assert response.status_code == 200
    body = response.json()
    assert body["object"] == "list" and body["model"] == "embedder"
    assert body["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert [(item["object"], item["index"]) for item in body["data"]] == [("embedding", 0)]
    np.testing.assert_allclose(body["data"][0]["embedding"], expected_row("word1", "word2"), rtol=1e-6)


async def test_a_list_keeps_its_order(server: Server) -> None:
    body = (await server.embed_text(["word3", "word1 word2", "word2 word1"])).json()
    assert [item["index"] for item in body["data"]] == [0, 1, 2]
    rows = [expected_row("word3"), expected_row("word1", "word2"), expected_row("word2", "word1")]
    np.testing.assert_allclose([item["embedding"] for item in body["data"]], rows, rtol=1e-6)
    assert body["usage"]["total_tokens"] == 3 + 4 + 4


async def test_a_list_of_many_texts_is_tokenised_in_chunks_and_keeps_its_order(server: Server) -> None:
    texts = [f"word{index % 60} word{index // 60}" + " " * 100 for index in range(2048)]
    body = (await server.embed_text(texts, encoding_format="base64")).json()
    rows = np.array([np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in body["data"]])
    expected = [expected_row(*text.split()) for text in texts]
    np.testing.assert_array_equal(rows, expected)


async def test_base64_holds_the_same_numbers(server: Server) -> None:
    as_float = (await server.embed_text("word5")).json()["data"][0]["embedding"]
    as_base64 = (await server.embed_text("word5", encoding_format="base64")).json()["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(as_base64), "<f4"), np.float32(as_float))


async def test_null_is_as_good_as_absent(server: Server) -> None:
    response = await server.embed_text("word5", encoding_format=None, dimensions=None, user=None)
    assert response.status_code == 200


async def test_fields_of_other_servers_are_ignored(server: Server) -> None:
    assert (await server.embed_text("word5", truncate_prompt_tokens=-1, user="me")).status_code == 200


async def test_dimensions_slice_and_scale_to_length_one(server: Server) -> None:
    body = (await server.embed_text("word5", dimensions=3)).json()
    row = expected_row("word5")[:3]
    np.testing.assert_allclose(body["data"][0]["embedding"], row / np.linalg.norm(row), rtol=1e-6)


async def test_token_ids_are_used_as_they_are(server: Server) -> None:
    body = (await server.embed_text([7, 8, 9])).json()
    assert server.embed.calls == [[[7, 8, 9]]]
    assert len(body["data"]) == 1
    assert body["usage"]["prompt_tokens"] == 3


async def test_lists_of_token_ids(server: Server) -> None:
    body = (await server.embed_text([[7, 8, 9], [0], [len(VOCAB) - 1]])).json()
    assert server.embed.calls == [[[7, 8, 9], [0], [len(VOCAB) - 1]]]
    assert body["usage"]["prompt_tokens"] == 5


@pytest.mark.parametrize(("truncation", "kept"), [("right", slice(0, 14)), ("left", slice(6, 20))])
async def test_usage_counts_what_is_left_after_truncation(
    make_server: MakeServer, truncation: str, kept: slice
) -> None:
    server = make_server(truncation=truncation)
    words = [f"word{index}" for index in range(20)]
    body = (await server.embed_text(" ".join(words))).json()
    assert body["usage"] == {"prompt_tokens": MAX_TOKENS, "total_tokens": MAX_TOKENS}
    assert server.embed.calls == [[[CLS, *map(id_of, words[kept]), SEP]]]


async def test_the_bare_path_is_the_same_route(server: Server) -> None:
    response = await server.client.post("/embeddings", json={"model": "embedder", "input": "word1"})
    assert response.status_code == 200
    assert server.count(route="/v1/embeddings", outcome="ok") == 1


async def test_models(server: Server) -> None:
    body = (await server.client.get("/v1/models")).json()
    assert body["object"] == "list"
    assert [item["id"] for item in body["data"]] == ["embedder", "classifier"]
    one = (await server.client.get("/v1/models/embedder")).json()
    assert one == body["data"][0]
    assert one["object"] == "model" and one["root"] == "embedder" and one["max_model_len"] == MAX_TOKENS
    assert isinstance(one["created"], int)


async def test_unknown_model_is_404(server: Server) -> None:
    response = await server.client.get("/v1/models/nobody/knows")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/embedder", "/info", "/health", "/metrics"])
async def test_head_is_answered_wherever_get_is(server: Server, path: str) -> None:
    get, head = await server.client.get(path), await server.client.head(path)
    assert head.status_code == get.status_code == 200
    assert head.headers["content-type"] == get.headers["content-type"]


async def test_the_model_may_be_left_out(server: Server) -> None:
    """text-embeddings-inference's clients do."""
    response = await server.client.post("/v1/embeddings", json={"input": "word1"})
    assert (response.status_code, response.json()["model"]) == (200, "embedder")


async def test_too_long_is_told_in_words_of_the_client(server: Server) -> None:
    message = (await server.embed_text("word1 " * 20)).json()["error"]["message"]
    assert message == f"input has 22 tokens; the limit is {MAX_TOKENS}; shorten it"
