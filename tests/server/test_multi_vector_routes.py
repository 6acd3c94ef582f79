"""`/v1/multi-vector`, `/embed_all` and ranking over a ColBERT: which tokens go to the engine, and what comes back."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import CLS, EMBED_DIM, EMBEDDER, SEP, VOCAB, MakeServer, Server, compute_row

from models.info import ModelInfo
from models.keys import ModelDirectoryError
from models.late_interaction import Expansion, LateInteraction
from server.tasks import multi_vector, token_embed
from server.text.late_interaction import Filling, fill_up, find_rules
from server.text.tokenizer import Tokenizer
from server.wire.job import Ragged, TokenSequence

pytestmark = pytest.mark.anyio

WORD1, WORD2, MARK = VOCAB.index("word1"), VOCAB.index("word2"), VOCAB.index("word59")
LATE = LateInteraction(8, 6, Expansion(8, "##able"))
COLBERT = replace(
    EMBEDDER,
    task="multi_vector",
    prompts={"query": "word59 ", "document": ""},
    late_interaction=LATE,
    skipped_tokens=("word2", "?"),
)
MASK = VOCAB.index("##able")
QUERY = [CLS, MARK, WORD1, SEP, *[MASK] * 4]


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    return make_server(others={"colbert": COLBERT})


def expect(ids: list[int], kept: list[int]) -> np.ndarray:
    """Rows of the tokens at these places."""
    return np.stack([compute_row(np.array(ids[: end + 1]), EMBED_DIM) for end in kept])


async def ask(server: Server, path: str, **body: Any) -> Any:
    response = await server.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_queries_are_filled_up(server: Server) -> None:
    answer = await ask(server, "/v1/multi-vector", input=["word1"], input_type="query")
    (item,) = answer["data"]
    np.testing.assert_allclose(item["embeddings"], expect(QUERY, list(range(8))), rtol=1e-6)
    assert (item["object"], item["index"], answer["model"]) == ("embeddings", 0, "colbert")
    assert answer["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    (job,) = server.engines["colbert"].jobs
    assert job.inputs["num_keys"].values.tolist() == [4]


async def test_documents_skip_tokens_and_are_cut(server: Server) -> None:
    answer = await ask(server, "/v1/multi-vector", input=["word1 word2 word1", "word2 " * 9])
    documents = [[CLS, WORD1, WORD2, WORD1, SEP], [CLS, *[WORD2] * 4, SEP]]
    for item, ids in zip(answer["data"], documents, strict=True):
        kept = [place for place, token_id in enumerate(ids) if token_id != WORD2]
        np.testing.assert_allclose(item["embeddings"], expect(ids, kept), rtol=1e-6)
    (job,) = server.engines["colbert"].jobs
    assert "num_keys" not in job.inputs


async def test_token_ids_are_filled_up_as_well(server: Server) -> None:
    answer = await ask(server, "/v1/multi-vector", input=[CLS, WORD2, SEP], input_type="query")
    ids = [CLS, WORD2, SEP, *[MASK] * 5]
    np.testing.assert_allclose(answer["data"][0]["embeddings"], expect(ids, list(range(8))), rtol=1e-6)


async def test_masks_that_are_attended_to(make_server: MakeServer) -> None:
    late = replace(LATE, expansion=Expansion(8, "##able", is_attended=True), skipping_sides=("query", "document"))
    server = make_server(others={"colbert": replace(COLBERT, late_interaction=late)})
    answer = await ask(server, "/v1/multi-vector", input="word2", input_type="query")
    assert len(answer["data"][0]["embeddings"]) == 7
    (job,) = server.engines["colbert"].jobs
    assert "num_keys" not in job.inputs and job.num_tokens == 8


async def test_embed_all_gives_documents(server: Server) -> None:
    (rows,) = await ask(server, "/embed_all", inputs="word1 word2")
    np.testing.assert_allclose(rows, expect([CLS, WORD1, WORD2, SEP], [0, 1, 3]), rtol=1e-6)
    response = await server.client.post("/embed_all", json={"inputs": "word1 " * 9, "truncate": False})
    assert response.status_code == 422 and "has 11 tokens; the limit is 6" in response.json()["error"]


@pytest.mark.parametrize("is_mean", [False, True])
async def test_ranking(make_server: MakeServer, is_mean: bool) -> None:
    colbert = replace(COLBERT, late_interaction=replace(LATE, is_mean=is_mean))
    server = make_server(others={"colbert": colbert})
    documents = {"word3": [CLS, VOCAB.index("word3"), SEP], "word1": [CLS, WORD1, SEP]}
    query = expect(QUERY, list(range(8)))
    scores = [(query @ expect(ids, [0, 1, 2]).T).max(1).sum() for ids in documents.values()]
    scores = [score / len(query) for score in scores] if is_mean else scores
    answer = await ask(server, "/v1/rerank", model="colbert", query="word1", documents=list(documents))
    found = {each["index"]: each["relevance_score"] for each in answer["results"]}
    np.testing.assert_allclose([found[0], found[1]], scores, rtol=1e-5)
    answer = await ask(server, "/score", model="colbert", text_1="word1", text_2=list(documents))
    np.testing.assert_allclose([each["score"] for each in answer["data"]], scores, rtol=1e-5)
    best = await ask(server, "/v2/rerank", model="colbert", query="word1", documents=list(documents), top_n=1)
    assert [each["index"] for each in best["results"]] == [int(np.argmax(scores))]


async def test_ranking_cuts_unless_the_call_says_no(server: Server) -> None:
    body = {"model": "colbert", "query": "word1", "texts": ["word3 " * 9]}
    for more in ({}, {"truncate": True}):
        await ask(server, "/rerank", **body, **more)
        assert server.engines["colbert"].jobs[-1].input_ids.lengths.tolist() == [6]
    response = await server.client.post("/rerank", json={**body, "truncate": False})
    assert response.status_code == 422 and "has 11 tokens; the limit is 6" in response.json()["error"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "input is missing"),
        ({"input": []}, "input must not be empty"),
        ({"input": "a", "input_type": "passage"}, "input_type"),
        ({"input": "a", "dimensions": 4}, "dimensions is 4; this model's vectors have 8. Leave it out"),
        ({"input": "a", "embedding_type": "base64"}, "embedding_type"),
        ({"input": "a", "model": "embedder"}, "its task is embed, served by POST /v1/embeddings"),
    ],
)
async def test_what_is_refused(server: Server, body: dict[str, Any], words: str) -> None:
    response = await server.client.post("/v1/multi-vector", json=body)
    assert response.status_code == 400 and words in response.json()["error"]["message"]


def test_a_token_that_the_vocabulary_lacks_is_refused(tokenizer: Tokenizer) -> None:
    info: ModelInfo = replace(COLBERT, late_interaction=replace(LATE, expansion=Expansion(8, "[MASK]")))
    assert find_rules(COLBERT, tokenizer, "query").filling is not None
    with pytest.raises(ModelDirectoryError, match=r"has no token '\[MASK\]', with which queries are filled up"):
        find_rules(info, tokenizer, "query")


def test_ids_are_read_where_some_are_skipped() -> None:
    """Else they would be copied for each step's rows."""
    for task in (token_embed.TASK, multi_vector.TASK):
        assert task.reads(token_embed.TokenEmbedParams()) == ()
        assert task.reads(token_embed.TokenEmbedParams((5,))) == ("input_ids",)


def test_filling_keeps_types_and_long_sequences() -> None:
    ids = np.arange(3, dtype=np.int32)
    sequences = [
        TokenSequence(ids),
        TokenSequence(ids, np.ones(3, np.int32)),
        TokenSequence(np.arange(9, dtype=np.int32)),
    ]
    short, typed, long = fill_up(sequences, Filling(7, 5, False))
    assert short.input_ids.tolist() == [0, 1, 2, 7, 7] and short.token_type_ids is None
    assert typed.token_type_ids is not None and typed.token_type_ids.tolist() == [1, 1, 1, 0, 0]
    assert long is sequences[2]


def test_scores_do_not_depend_on_how_many_there_are() -> None:
    random = np.random.default_rng(0)
    query = Ragged(random.standard_normal((32, 128), np.float32), np.array([0, 32], np.int32))
    lengths = [1, 500, 64, 65, 0, 7]
    values = random.standard_normal((sum(lengths), 128), np.float32)
    documents = Ragged(values, np.cumsum([0, *lengths]).astype(np.int32))
    together = multi_vector.score_rows(query, documents, is_mean=False)
    alone = [multi_vector.score_rows(query, documents.pick([row]), is_mean=False)[0] for row in range(len(lengths))]
    np.testing.assert_array_equal(together, alone)
    expected = [(query.values @ documents.row(1).T).max(1).sum(), 0.0]
    np.testing.assert_allclose(together[[1, 4]], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/multi-vector", {"input": ["word1 word3 word4"], "model": "wide"}),
        ("/embed_all", {"inputs": "word1 word3 word4", "model": "wide"}),
        ("/pooling", {"input": "word1 word3 word4", "model": "wide", "task": "token_embed"}),
        ("/pooling", {"input": "word1 word3 word4", "model": "tagger", "truncate_prompt_tokens": 5}),
        ("/rerank", {"query": "word1", "texts": ["word1 word3 word4"], "model": "wide"}),
    ],
)
async def test_numbers_of_an_answer_are_bounded(make_server: MakeServer, path: str, body: dict[str, Any]) -> None:
    """Before anything is computed: the memory for more would not be there."""
    wide = replace(COLBERT, output_dim=1 << 24)
    tagger = replace(EMBEDDER, task="token_classify", output_dim=1 << 24, id2label={})
    server = make_server(others={"wide": wide, "tagger": tagger})
    server.engines["wide"].gate = server.engines["tagger"].gate = asyncio.Event()
    response = await server.client.post(path, json=body, headers={"x-request-timeout-ms": "5000"})
    assert response.status_code in (400, 422) and "numbers per request" in response.text
    assert all(not model.admission.num_inputs for model in server.state.models.values())
