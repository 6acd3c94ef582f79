"""The unmodified `cohere` client against a real socket: both versions of its reranking."""

from collections.abc import Iterator

import cohere
import numpy as np
import pytest
from cohere.errors import BadRequestError, InternalServerError, NotFoundError
from conftest import CLS, RANKER, SEP, VOCAB, MakeServer, compute_row
from test_openai_client import Live, run_live

from server.errors import EngineFailure
from server.tasks.classify import compute_sigmoid

DOCUMENTS = ["word2", "word3", "word4"]


@pytest.fixture
def live(make_server: MakeServer) -> Iterator[Live]:
    with run_live(make_server(others={"ranker": RANKER})) as running:
        yield running


@pytest.fixture
def first(live: Live) -> Iterator[cohere.Client]:
    with cohere.Client(api_key="none", base_url=find_url(live), log_warning_experimental_features=False) as client:
        yield client


@pytest.fixture
def second(live: Live) -> Iterator[cohere.ClientV2]:
    with cohere.ClientV2(api_key="none", base_url=find_url(live), log_warning_experimental_features=False) as client:
        yield client


def find_url(live: Live) -> str:
    return live.url.removesuffix("/v1")


def expect_scores() -> np.ndarray:
    """float32 `[3]`, of the DOCUMENTS for word1."""
    pairs = [[CLS, VOCAB.index("word1"), SEP, VOCAB.index(document), SEP] for document in DOCUMENTS]
    return compute_sigmoid(np.array([compute_row(np.array(pair), 1)[0] for pair in pairs]))


def test_version_1(first: cohere.Client) -> None:
    answer = first.rerank(model="ranker", query="word1", documents=[*DOCUMENTS[:2], {"text": "word4", "id": "7"}])
    scores = expect_scores()
    assert [result.index for result in answer.results] == np.argsort(-scores).tolist()
    for result in answer.results:
        assert result.relevance_score == pytest.approx(float(scores[result.index]), rel=1e-6)
        assert result.document is not None and result.document.text == DOCUMENTS[result.index]
    assert answer.meta is not None and answer.meta.api_version is not None and answer.meta.api_version.version == "1"


def test_version_2(second: cohere.ClientV2) -> None:
    answer = second.rerank(model="ranker", query="word1", documents=DOCUMENTS, top_n=2, max_tokens_per_doc=4096)
    scores = expect_scores()
    assert [result.index for result in answer.results] == np.argsort(-scores)[:2].tolist()
    assert answer.results[0].relevance_score == pytest.approx(float(scores.max()), rel=1e-6)
    assert answer.id and answer.meta is not None and answer.meta.tokens is not None
    assert answer.meta.tokens.input_tokens == 15


def test_errors(live: Live, second: cohere.ClientV2) -> None:
    with pytest.raises(BadRequestError) as caught:
        second.rerank(model="ranker", query="word1", documents=["word2", ""])
    assert caught.value.body["message"] == "documents[1] must not be empty"
    with pytest.raises(NotFoundError, match="'nobody' does not exist"):
        second.rerank(model="nobody", query="word1", documents=DOCUMENTS)
    live.server.engines["ranker"].error = EngineFailure("step")
    with pytest.raises(InternalServerError):
        second.rerank(model="ranker", query="word1", documents=DOCUMENTS, request_options={"max_retries": 0})
