"""Hugging Face's payloads: their errors, what is not of a task, and the unmodified client of huggingface_hub."""

from collections.abc import Iterator
from dataclasses import replace

import huggingface_hub
import numpy as np
import pytest
from conftest import CLASSIFIER, CLS, EMBED_DIM, EMBEDDER, MAX_TOKENS, SEP, VOCAB, MakeServer, Server, compute_row
from fake_generator import GenerationServer
from huggingface_hub.errors import HfHubHTTPError
from test_openai_client import Live, run_live

pytestmark = pytest.mark.anyio

TAGS = {0: "O", 1: "B-PER", 2: "I-PER"}
TAGGER = replace(CLASSIFIER, architecture="BertForTokenClassification", task="token_classify", id2label=TAGS)
ENTAILER = replace(CLASSIFIER, id2label={0: "entailment", 1: "neutral", 2: "contradiction"})
OTHERS = {"tagger": TAGGER, "org/entailer": ENTAILER, "plain": replace(EMBEDDER, normalize=False)}
LONG = " ".join(["word1"] * (MAX_TOKENS + 1))


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    return make_server(others=OTHERS, max_client_batch_size=8)


BAD = {
    "no inputs": ("tagger", {}, "inputs is missing"),
    "a number": ("tagger", {"inputs": 5}, "inputs must be a text"),
    "null": ("tagger", {"inputs": None}, "inputs must be a text"),
    "a number among texts": ("tagger", {"inputs": ["word1", 5]}, "inputs"),
    "half a pair": ("classifier", {"inputs": {"text": "word1"}}, "inputs must be a text"),
    "an empty list": ("tagger", {"inputs": []}, "inputs must not be empty"),
    "an empty text": ("tagger", {"inputs": ["word1", ""]}, "inputs[1] must not be empty"),
    "an empty text to cut": ("tagger", {"inputs": "", "parameters": {"stride": 2}}, "inputs must not be empty"),
    "too many texts": ("tagger", {"inputs": ["word1"] * 9}, "the limit is 8"),
    "too many windows": ("tagger", {"inputs": LONG * 20, "parameters": {"stride": 12}}, "windows; the limit is 8"),
    "a pair for a tagger": ("tagger", {"inputs": {"text": "word1", "text_pair": "word2"}}, "a list of texts for this"),
    "pairs for a tagger": ("tagger", {"inputs": [{"text": "word1", "text_pair": "word2"}]}, "a list of texts for this"),
    "a long text": ("tagger", {"inputs": LONG}, "set a stride"),
    "parameters of another type": ("tagger", {"inputs": "word1", "parameters": []}, "parameters"),
    "unknown strategy": ("tagger", {"inputs": "word1", "parameters": {"aggregation_strategy": "last"}}, "aggregation"),
    "labels of another type": ("tagger", {"inputs": "word1", "parameters": {"ignore_labels": [1]}}, "ignore_labels"),
    "too many labels": ("tagger", {"inputs": "word1", "parameters": {"ignore_labels": ["O"] * 1025}}, "too long"),
    "stride below 0": ("tagger", {"inputs": "word1", "parameters": {"stride": -1}}, "stride"),
    "stride as a text": ("tagger", {"inputs": "word1", "parameters": {"stride": "1"}}, "stride"),
    "stride without room": ("tagger", {"inputs": LONG, "parameters": {"stride": 14}}, "room for 14"),
    "stride of tokens": (
        *("tagger", {"inputs": LONG, "parameters": {"stride": 1, "aggregation_strategy": "none"}}),
        "other than none",
    ),
    "unknown function": ("classifier", {"inputs": "word1", "parameters": {"function_to_apply": "relu"}}, "function"),
    "top_k 0": ("classifier", {"inputs": "word1", "parameters": {"top_k": 0}}, "top_k"),
    "no such labels": ("classifier", {"inputs": "word1", "parameters": {"candidate_labels": ["a"]}}, "'entailment'"),
    "no labels": ("org/entailer", {"inputs": "word1", "parameters": {"candidate_labels": []}}, "must not be empty"),
    "only commas": ("org/entailer", {"inputs": "word1", "parameters": {"candidate_labels": ", ,"}}, "not be empty"),
    "labels are numbers": (
        "org/entailer",
        {"inputs": "a", "parameters": {"candidate_labels": [1]}},
        "candidate_labels[0]",
    ),
    "texts times labels": (
        *("org/entailer", {"inputs": ["word1"] * 3, "parameters": {"candidate_labels": ["a"] * 3}}),
        "inputs times candidate_labels has 9 items",
    ),
    "template without a place": (
        *("org/entailer", {"inputs": "a", "parameters": {"candidate_labels": "a", "hypothesis_template": "It is."}}),
        "hypothesis_template",
    ),
    "template that formats": (
        *("org/entailer", {"inputs": "a", "parameters": {"candidate_labels": "a", "hypothesis_template": "{:>9}"}}),
        "hypothesis_template",
    ),
    "too many dimensions": ("embedder", {"inputs": "word1", "dimensions": 9}, "dimensions is 9"),
    "not normalised": ("embedder", {"inputs": "word1", "normalize": False}, "normalize"),
    "sentences for a tagger": ("tagger", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}, "list of texts for"),
    "sentences for a classifier": (
        *("classifier", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
        "are for embedders",
    ),
    "a list to compare with": (
        *("embedder", {"inputs": {"source_sentence": ["a"], "sentences": ["b"]}}),
        "source_sentence must be a text",
    ),
    "nothing to compare with": (
        *("embedder", {"inputs": {"source_sentence": "word1", "sentences": []}}),
        "sentences must not be empty",
    ),
    "half a comparison": ("embedder", {"inputs": {"source_sentence": "word1"}}, "inputs must be a text"),
    "unknown prompt": ("embedder", {"inputs": "word1", "prompt_name": "nobody"}, "prompt_name"),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_requests(server: Server, case: str) -> None:
    model, body, told = BAD[case]
    response = await server.client.post(f"/models/{model}", json=body)
    assert response.status_code == 400, response.text
    assert list(response.json()) == ["error"]
    assert told in response.json()["error"]
    assert (await server.client.post("/models/tagger", json={"inputs": "word1"})).status_code == 200


async def test_a_hypothesis_that_fills_the_limit_by_itself(make_server: MakeServer) -> None:
    server = make_server(others=OTHERS, truncation="right")
    body = {"inputs": LONG, "parameters": {"candidate_labels": [LONG[:100]]}}
    response = await server.client.post("/models/org/entailer", json=body)
    assert response.status_code == 400 and "in its second text alone" in response.json()["error"]


@pytest.mark.parametrize(
    ("path", "status"), [("/models/nobody", 404), ("/models/tagger", 405), ("/models/org/entailer", 415)]
)
async def test_other_errors_have_the_same_shape(server: Server, path: str, status: int) -> None:
    method = "GET" if status == 405 else "POST"
    headers = {"content-type": "text/plain" if status == 415 else "application/json"}
    response = await server.client.request(method, path, content=b'{"inputs": "a"}', headers=headers)
    assert response.status_code == status
    assert list(response.json()) == ["error"] and isinstance(response.json()["error"], str)


async def test_models_that_generate_do_none_of_this(generator: GenerationServer) -> None:
    response = await generator.client.post("/models/writer", json={"inputs": "word1"})
    assert response.status_code == 400 and "cannot be used here" in response.json()["error"]


async def test_the_servers_own_address(server: Server) -> None:
    """Where several models could answer, the body has to say which."""
    response = await server.client.post("/", json={"inputs": "word1"})
    assert response.status_code == 400 and isinstance(response.json()["error"], str)
    answer = (await server.client.post("/", json={"inputs": "word1", "model": "classifier"})).json()
    assert answer == (await server.client.post("/models/classifier", json={"inputs": "word1"})).json()
    assert (await server.client.get("/")).json()["server"] == "padless"


async def test_options_and_nulls_change_nothing(server: Server) -> None:
    body = {"inputs": "word1 word2", "options": {"wait_for_model": True}, "parameters": {"stride": None}}
    expected = (await server.client.post("/models/tagger", json={"inputs": "word1 word2"})).json()
    assert (await server.client.post("/models/tagger", json=body)).json() == expected


async def test_labels_that_are_null_are_not_asked_for(server: Server) -> None:
    expected = (await server.client.post("/models/embedder", json={"inputs": "word1"})).json()
    body = {"inputs": "word1", "parameters": {"candidate_labels": None}}
    assert (await server.client.post("/models/embedder", json=body)).json() == expected


async def test_fewer_dimensions_have_the_models_length(server: Server) -> None:
    """1, where the model has it; as `/v1/embeddings` answers."""
    for model, normalize, is_scaled in (("embedder", None, True), ("plain", None, False), ("plain", True, True)):
        body = {"inputs": "word1", "dimensions": 3, "normalize": normalize}
        (row,) = (await server.client.post(f"/models/{model}", json=body)).json()
        assert bool(np.isclose(np.linalg.norm(row), 1)) is is_scaled


@pytest.fixture
def live(server: Server) -> Iterator[Live]:
    with run_live(server) as running:
        yield running


def connect(live: Live, name: str) -> huggingface_hub.InferenceClient:
    return huggingface_hub.InferenceClient(live.url.removesuffix("/v1") + f"/models/{name}", token="none")


def test_client_token_classification(live: Live) -> None:
    text = "word1  word2 unable words"
    found = connect(live, "tagger").token_classification(text, aggregation_strategy="none", ignore_labels=[])
    assert [text[item.start : item.end] for item in found] == ["word1", "word2", "un", "able", "words"]
    assert {item.entity for item in found} <= set(TAGS.values())
    groups = connect(live, "tagger").token_classification(text * 9, ignore_labels=[], stride=3)
    assert all(item.entity_group in ("O", "PER") for item in groups)
    assert groups[-1].end == len(text * 9)


def test_client_text_classification(live: Live) -> None:
    logits = compute_row(np.array([CLS, VOCAB.index("word1"), SEP]), 3)
    found = connect(live, "classifier").text_classification("word1", function_to_apply="none", top_k=2)
    np.testing.assert_allclose([item.score for item in found], np.sort(logits)[::-1][:2], rtol=1e-6)


def test_client_zero_shot(live: Live) -> None:
    client = connect(live, "org/entailer")
    found = client.zero_shot_classification("word1", ["word2", "word3"], hypothesis_template="word4 {}")
    assert sorted(item.label for item in found) == ["word2", "word3"]
    assert sum(item.score for item in found) == pytest.approx(1.0)


def test_client_feature_extraction(live: Live) -> None:
    expected = compute_row(np.array([CLS, VOCAB.index("word1"), SEP]), EMBED_DIM)
    for name in ("embedder", "plain"):
        found = connect(live, name).feature_extraction("word1", normalize=True, truncate=True)
        np.testing.assert_allclose(found, [expected], rtol=1e-6)
    assert connect(live, "embedder").feature_extraction(["word1", "word2"], dimensions=3).shape == (2, 3)


def test_client_sentence_similarity(live: Live) -> None:
    rows = [compute_row(np.array([CLS, VOCAB.index(word), SEP]), EMBED_DIM) for word in ("word1", "word2", "word3")]
    found = connect(live, "embedder").sentence_similarity("word1", ["word2", "word3"])
    np.testing.assert_allclose(found, [rows[0] @ rows[1], rows[0] @ rows[2]], rtol=0, atol=1e-6)


def test_client_shows_our_errors(live: Live) -> None:
    with pytest.raises(HfHubHTTPError, match="set a stride"):
        connect(live, "tagger").token_classification(LONG)
