"""`/pooling` as vLLM answers it, over models of every kind."""

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import CLASSIFIER, CLS, EMBED_DIM, EMBEDDER, LABELS, SEP, SPARSE, VOCAB, MakeServer, Server, compute_row
from test_multi_vector_routes import COLBERT

from server.tasks.classify import compute_softmax

pytestmark = pytest.mark.anyio

IDS = [CLS, VOCAB.index("word1"), SEP]
TOKENS = replace(EMBEDDER, task="token_embed", head="tokens", normalize=False)
TAGGER = replace(CLASSIFIER, architecture="BertForTokenClassification", task="token_classify")


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    others = {"colbert": COLBERT, "tagger": TAGGER, "splade": SPARSE}
    return make_server(others=others, heads={"embedder": [TOKENS]})


async def ask(server: Server, model: str, **body: Any) -> Any:
    response = await server.client.post("/pooling", json={"model": model, "input": "word1", **body})
    assert response.status_code == 200, response.text
    (item,) = response.json()["data"]
    assert (item["index"], item["object"]) == (0, "pooling")
    return item["data"]


def compute_tokens(width: int) -> np.ndarray:
    return np.stack([compute_row(np.array(IDS[: end + 1]), width) for end in range(len(IDS))])


async def test_the_shape_of_an_answer(server: Server) -> None:
    response = await server.client.post("/pooling", json={"model": "embedder", "input": ["word1", "word2"]})
    answer = response.json()
    assert (answer["object"], answer["model"], len(answer["data"])) == ("list", "embedder", 2)
    assert answer["id"].startswith("pool-") and answer["usage"] == {"prompt_tokens": 6, "total_tokens": 6}


@pytest.mark.parametrize("task", [None, "embed"])
async def test_embedders(server: Server, task: str | None) -> None:
    expected = compute_row(np.array(IDS), EMBED_DIM)
    np.testing.assert_allclose(await ask(server, "embedder", task=task), expected, rtol=1e-6)
    assert len(await ask(server, "embedder", dimensions=3)) == 3


@pytest.mark.parametrize("task", [None, "classify"])
async def test_classifiers(server: Server, task: str | None) -> None:
    logits = compute_row(np.array(IDS), len(LABELS))
    scores = compute_softmax(logits[None])[0]
    np.testing.assert_allclose(await ask(server, "classifier", task=task), scores, rtol=1e-6)
    np.testing.assert_allclose(await ask(server, "classifier", use_activation=False), logits, rtol=1e-6)


@pytest.mark.parametrize("task", [None, "token_classify"])
async def test_taggers(server: Server, task: str | None) -> None:
    logits = compute_tokens(len(LABELS))
    np.testing.assert_allclose(await ask(server, "tagger", task=task), compute_softmax(logits), rtol=1e-5)
    np.testing.assert_allclose(await ask(server, "tagger", use_activation=False), logits, rtol=1e-6)


async def test_tokens_of_an_embedder(server: Server) -> None:
    rows = await ask(server, "embedder", task="token_embed")
    np.testing.assert_allclose(rows, compute_tokens(EMBED_DIM), rtol=1e-5)
    assert server.embed.jobs[-1].outputs == {"token_embeddings": "tokens.token_embeddings"}


@pytest.mark.parametrize(("input_type", "num_rows"), [(None, 3), ("document", 3), ("query", 8)])
async def test_late_interaction(server: Server, input_type: str | None, num_rows: int) -> None:
    assert len(await ask(server, "colbert", input_type=input_type)) == num_rows


@pytest.mark.parametrize(("model", "shape"), [("embedder", (EMBED_DIM,)), ("tagger", (3, 3)), ("colbert", (3, 8))])
async def test_base64(server: Server, model: str, shape: tuple[int, ...]) -> None:
    data = await ask(server, model, encoding_format="base64")
    found = np.frombuffer(base64.b64decode(data), "<f4").reshape(shape)
    np.testing.assert_allclose(found, await ask(server, model), rtol=1e-6)


@pytest.mark.parametrize(("model", "shape"), [("embedder", (EMBED_DIM,)), ("tagger", (3, 3)), ("colbert", (3, 8))])
async def test_half_precision(server: Server, model: str, shape: tuple[int, ...]) -> None:
    data = await ask(server, model, encoding_format="base64", embed_dtype="float16", endianness="little")
    found = np.frombuffer(base64.b64decode(data), "<f2").reshape(shape)
    np.testing.assert_allclose(found, await ask(server, model, embed_dtype="float32"), rtol=1e-3)
    np.testing.assert_array_equal(found, np.float16(await ask(server, model, embed_dtype="float16")))


async def test_truncation(server: Server) -> None:
    long = "word1 " * 30
    assert len(await ask(server, "tagger", input=long, truncate_prompt_tokens=-1)) == 16
    assert len(await ask(server, "tagger", input=long, truncate_prompt_tokens=5)) == 5
    assert len(await ask(server, "colbert", input=long, truncate_prompt_tokens=4)) == 4
    assert len(await ask(server, "colbert", input=long, truncate_prompt_tokens=12)) == 6


async def test_without_special_tokens(server: Server) -> None:
    assert len(await ask(server, "tagger", add_special_tokens=False)) == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"model": "embedder"}, "input is missing"),
        (
            {"model": "embedder", "input": "a", "task": "plugin"},
            "task 'plugin' is not known; tasks are embed, classify",
        ),
        ({"model": "classifier", "input": "a", "task": "embed"}, "its task is classify"),
        ({"model": "splade", "input": "a"}, "its task is sparse, served by POST /embed_sparse"),
        (
            {"model": "classifier", "input": "a", "dimensions": 2},
            "dimensions is for the task embed, and this is classify",
        ),
        ({"model": "embedder", "input": "a", "input_type": "query"}, "input_type is for models for late interaction"),
        ({"model": "embedder", "input": "a", "use_activation": False}, "use_activation cannot be false"),
        ({"model": "colbert", "input": "a", "use_activation": False}, "use_activation cannot be false"),
        ({"model": "embedder", "input": "a", "encoding_format": "bytes"}, "encoding_format"),
        ({"model": "embedder", "input": "a", "embed_dtype": "bfloat16"}, "embed_dtype"),
        ({"model": "embedder", "input": "a", "endianness": "big"}, "endianness"),
        ({"model": "tagger", "input": "word1 " * 30}, "has 32 tokens; the limit is 16"),
        ({"input": "a"}, "several models could answer"),
    ],
)
async def test_what_is_refused(server: Server, body: dict[str, Any], words: str) -> None:
    response = await server.client.post("/pooling", json=body)
    assert response.status_code == 400 and words in response.json()["error"]["message"]
