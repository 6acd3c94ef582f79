"""ColBERTs from the request to the vectors and scores, on a real engine: those of MultiVectorEncoder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from late_dirs import FORMATS
from sentence_dirs import make_base, make_texts
from test_served_prompts import Client, serve

sentence_transformers = pytest.importorskip("sentence_transformers")

TEXTS = [*make_texts(12), "a: b c:a", ":", "AB" * 40]
"""Some are longer than either side may be, and some have tokens that are skipped."""
QUICK = ("stanford", "pylate", "own-min")


async def ask_for(client: Client, path: str, **body: Any) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def check(ours: Any, theirs: Any) -> None:
    assert [len(rows) for rows in ours] == [len(rows) for rows in theirs]
    for rows, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(rows, expected, rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    make_base(directory)
    return directory


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FORMATS]
)
def test_vectors_and_scores(base: Path, tmp_path: Path, name: str) -> None:
    directory = FORMATS[name](base, tmp_path / "model")
    theirs = sentence_transformers.MultiVectorEncoder(str(directory), device="cpu", local_files_only=True)
    queries = theirs.encode_query(TEXTS, convert_to_numpy=True)
    documents = theirs.encode_document(TEXTS, convert_to_numpy=True)
    assert len({len(rows) for rows in documents}) > 5, "documents must differ in what is skipped and cut"
    scores = theirs.similarity(queries[:2], documents).numpy()
    pairs = theirs.similarity_pairwise(queries, documents).numpy()

    async def ask(client: Client) -> None:
        for side, expected in (("query", queries), ("document", documents)):
            answer = await ask_for(client, "/v1/multi-vector", input=TEXTS, input_type=side)
            check([each["embeddings"] for each in answer["data"]], expected)
            answer = await ask_for(client, "/pooling", input=TEXTS, input_type=side)
            check([each["data"] for each in answer["data"]], expected)
        check(await ask_for(client, "/embed_all", inputs=TEXTS), documents)
        answer = await ask_for(client, "/v1/rerank", query=TEXTS[1], documents=TEXTS)
        found = {each["index"]: each["relevance_score"] for each in answer["results"]}
        np.testing.assert_allclose([found[index] for index in range(len(TEXTS))], scores[1], rtol=0, atol=1e-4)
        assert [each["index"] for each in answer["results"]] == sorted(found, key=lambda index: -found[index])
        answer = await ask_for(client, "/score", text_1=TEXTS, text_2=TEXTS)
        np.testing.assert_allclose([each["score"] for each in answer["data"]], pairs, rtol=0, atol=1e-4)

    serve(directory, tmp_path / "run", ask)
