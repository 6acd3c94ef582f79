"""Ranking from the request to the scores, on a real engine: those of sentence-transformers, of pairs cut as well."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sentence_dirs import HIDDEN_SIZE, make_base, make_texts, write_directory
from test_served_prompts import Client, serve

sentence_transformers = pytest.importorskip("sentence_transformers")

Scores = npt.NDArray[np.float64]
QUERY = "abc def gh"
DOCUMENTS = make_texts(30)
"""The longest of them do not fit together with the query."""


async def ask_for(client: Client, path: str, **body: Any) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def sort_back(results: list[dict[str, Any]], name: str) -> Scores:
    """In the order of the documents; they must have come best first."""
    scores = np.array([result[name] for result in results])
    assert (np.diff(scores) <= 0).all()
    return scores[np.argsort([result["index"] for result in results])]


def check(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, np.asarray(theirs, np.float64), rtol=0, atol=1e-5)


def test_a_cross_encoders_scores(tmp_path: Path) -> None:
    make_base(tmp_path / "model", num_labels=1)
    theirs = sentence_transformers.CrossEncoder(str(tmp_path / "model"), device="cpu", local_files_only=True)
    pairs = [(QUERY, document) for document in DOCUMENTS]
    assert max(len(row) for row in theirs.tokenizer(pairs)["input_ids"]) > 42, "some must be too long"
    raw = theirs.predict(pairs, activation_fn=torch.nn.Identity())
    scores = theirs.predict(pairs, activation_fn=torch.nn.Sigmoid())
    assert np.ptp(scores) > 0.1, "they must tell"

    async def ask(client: Client) -> None:
        check(sort_back(await ask_for(client, "/rerank", query=QUERY, texts=DOCUMENTS), "score"), scores)
        answer = await ask_for(client, "/rerank", query=QUERY, texts=DOCUMENTS, raw_scores=True)
        check(sort_back(answer, "score"), raw)
        for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
            answer = await ask_for(client, path, query=QUERY, documents=DOCUMENTS)
            check(sort_back(answer["results"], "relevance_score"), scores)
        answer = await ask_for(client, "/score", text_1=QUERY, text_2=DOCUMENTS)
        check([item["score"] for item in answer["data"]], theirs.predict(pairs))
        best = await ask_for(client, "/v2/rerank", query=QUERY, documents=DOCUMENTS, top_n=5)
        assert [result["index"] for result in best["results"]] == [
            rank["corpus_id"] for rank in theirs.rank(QUERY, DOCUMENTS, top_k=5)
        ]

    serve(tmp_path / "model", tmp_path / "run", ask)


@pytest.mark.parametrize("prompts", [{}, {"query": "ab: ", "document": "c"}])
def test_an_embedders_scores(tmp_path: Path, prompts: dict[str, str]) -> None:
    make_base(tmp_path / "base")
    module = ("Pooling", {"word_embedding_dimension": HIDDEN_SIZE, "pooling_mode_mean_tokens": True})
    files = {"config_sentence_transformers.json": {"prompts": prompts}} if prompts else {}
    directory = write_directory(tmp_path / "base", tmp_path / "model", [module], files)
    theirs = sentence_transformers.SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    scores = compute_cosines(theirs.encode_query([QUERY]), theirs.encode_document(DOCUMENTS))
    alike = compute_cosines(theirs.encode([QUERY]), theirs.encode(DOCUMENTS))

    async def ask(client: Client) -> None:
        answer = await ask_for(client, "/v1/rerank", query=QUERY, documents=DOCUMENTS)
        check(sort_back(answer["results"], "relevance_score"), scores)
        answer = await ask_for(client, "/score", queries=QUERY, documents=DOCUMENTS)
        check([item["score"] for item in answer["data"]], scores)
        inputs = {"source_sentence": QUERY, "sentences": DOCUMENTS}
        check(await ask_for(client, "/similarity", inputs=inputs), alike)

    serve(directory, tmp_path / "run", ask)


def compute_cosines(queries: npt.NDArray[np.float32], documents: npt.NDArray[np.float32]) -> Scores:
    """`[1, dim]` and `[n, dim]` to `[n]`"""
    rows = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, documents)]
    scores: Scores = np.asarray(rows[0] @ rows[1].T, np.float64)[0]
    return scores
