"""`/embed`, `/decode` and `/info` as text-embeddings-inference answers them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import (
    CLASSIFIER,
    CLS,
    EMBED_DIM,
    LABELS,
    MAX_TOKENS,
    RANKER,
    SEP,
    SPARSE,
    VOCAB,
    MakeServer,
    Server,
    compute_row,
)
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models

from server.errors import EmptyInput, InvalidField
from server.text.tokenizer import Tokenizer

pytestmark = pytest.mark.anyio
WORDS = [f"word{index}" for index in range(20)]
LONG = " ".join(WORDS)


def ids(*words: str) -> list[int]:
    return [VOCAB.index(word) for word in words]


def expect(*words: str) -> np.ndarray:
    return compute_row(np.array([CLS, *ids(*words), SEP]), EMBED_DIM)


async def embed(server: Server, inputs: Any, **options: Any) -> Any:
    response = await server.client.post("/embed", json={"inputs": inputs, **options})
    assert response.status_code == 200, response.text
    return response.json()


def change_info(server: Server, **changes: Any) -> None:
    model = server.state.models["embedder"]
    server.state.models["embedder"] = replace(model, info=replace(model.info, **changes))


@pytest.mark.parametrize("inputs", ["word1 word2", ["word1 word2"]])
async def test_one_text_is_a_list_of_one(server: Server, inputs: Any) -> None:
    np.testing.assert_allclose(await embed(server, inputs), [expect("word1", "word2")], rtol=1e-5)


async def test_lists(server: Server) -> None:
    rows = await embed(server, ["word3", "word1 word2"])
    np.testing.assert_allclose(rows, [expect("word3"), expect("word1", "word2")], rtol=1e-5)
    assert len(await embed(server, [5, 6])) == 1
    assert len(await embed(server, [[5, 6], [7]])) == 2
    assert server.embed.calls[1:] == [[[5, 6]], [[5, 6], [7]]]


async def test_many(server: Server) -> None:
    rows = await embed(server, [f"word{index % 60} word{index // 60}" for index in range(2048)])
    np.testing.assert_allclose(rows[2047], expect("word7", "word34"), rtol=1e-5)


async def test_dimensions(server: Server) -> None:
    cut = expect("word5")[:3]
    np.testing.assert_allclose(await embed(server, "word5", dimensions=3), [cut / np.linalg.norm(cut)], rtol=1e-5)


async def test_normalize(server: Server) -> None:
    """Of a model that leaves it to the caller; the others' vectors cannot be had unscaled."""
    response = await server.client.post("/embed", json={"inputs": "word5", "normalize": False})
    assert response.status_code == 422 and response.json()["error"].startswith("normalize cannot be false")
    change_info(server, normalize=False)
    cut = expect("word5")[:3]
    np.testing.assert_allclose(await embed(server, "word5", dimensions=3, normalize=False), [cut], rtol=1e-5)
    scaled = await embed(server, "word5", dimensions=3)
    np.testing.assert_allclose(scaled, [cut / np.linalg.norm(cut)], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"truncate": True}, WORDS[:14]),
        ({"truncate": True, "truncation_direction": "Right"}, WORDS[:14]),
        ({"truncate": True, "truncation_direction": "Left"}, WORDS[6:]),
    ],
)
async def test_truncation(server: Server, options: dict[str, Any], kept: list[str]) -> None:
    await embed(server, LONG, **options)
    assert server.embed.calls == [[[CLS, *ids(*kept), SEP]]]


async def test_prompt_name(server: Server) -> None:
    change_info(server, prompts={"query": "word9 "})
    await embed(server, "word1", prompt_name="query")
    await embed(server, [5], prompt_name="query")
    assert server.embed.calls == [[[CLS, *ids("word9", "word1"), SEP]], [[5]]]


REFUSED = {
    "empty text": ({"inputs": ""}, 400, "Empty", "inputs"),
    "empty list": ({"inputs": []}, 400, "Empty", "inputs"),
    "empty text in a list": ({"inputs": ["word1", ""]}, 400, "Empty", "inputs[1]"),
    "empty ids": ({"inputs": [[5], []]}, 400, "Empty", "inputs[1]"),
    "missing": ({}, 422, "Validation", "inputs is missing"),
    "mixed": ({"inputs": ["word1", [5]]}, 422, "Validation", "inputs"),
    "a number": ({"inputs": 5}, 422, "Validation", "inputs"),
    "id out of range": ({"inputs": [len(VOCAB)]}, 422, "Validation", "ids of this model go from 0"),
    "too many": ({"inputs": ["word1"] * 2049}, 422, "Validation", "the limit is 2048"),
    "too long": ({"inputs": LONG}, 422, "Validation", "set truncate to true"),
    "direction": ({"inputs": "word1", "truncation_direction": "up"}, 422, "Validation", "truncation_direction"),
    "truncate": ({"inputs": "word1", "truncate": "yes"}, 422, "Validation", "truncate"),
    "normalize": ({"inputs": "word1", "normalize": "no"}, 422, "Validation", "normalize"),
    "dimensions 0": ({"inputs": "word1", "dimensions": 0}, 422, "Validation", "dimensions"),
    "dimensions": ({"inputs": "word1", "dimensions": 9}, 422, "Validation", "dimensions is 9"),
    "prompt": ({"inputs": "word1", "prompt_name": "titles"}, 422, "Validation", "prompt_name"),
    "model": ({"inputs": "word1", "model": "nobody"}, 404, "Validation", "nobody"),
    "task": ({"inputs": "word1", "model": "classifier"}, 422, "Validation", "/predict"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_refused(server: Server, case: str) -> None:
    body, status, kind, problem = REFUSED[case]
    response = await server.client.post("/embed", json=body)
    assert (response.status_code, response.json()["error_type"]) == (status, kind)
    assert sorted(response.json()) == ["error", "error_type"] and problem in response.json()["error"]
    assert server.embed.calls == [] and server.state.models["embedder"].admission.num_inputs == 0


async def decode(server: Server, ids: Any, **options: Any) -> Any:
    response = await server.client.post("/decode", json={"ids": ids, "model": "embedder", **options})
    assert response.status_code == 200, response.text
    return response.json()


async def test_decode(server: Server) -> None:
    tokens = [CLS, *ids("word1", "word2"), SEP]
    assert await decode(server, tokens) == ["word1 word2"]
    assert await decode(server, [tokens, ids("word3")]) == ["word1 word2", "word3"]
    assert await decode(server, tokens, skip_special_tokens=False) == ["[CLS] word1 word2 [SEP]"]
    assert len(await decode(server, [[5]] * 2048)) == 2048


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        ({"ids": []}, 400, "ids"),
        ({"ids": [[5], []]}, 400, "ids[1] must not be empty"),
        ({"ids": [-1]}, 422, "ids has the token id -1"),
        ({"ids": [[5], [len(VOCAB)]]}, 422, "ids[1] has the token id"),
        ({"ids": "word1"}, 422, "ids"),
        ({"ids": [5, [6]]}, 422, "ids"),
        ({"ids": [True]}, 422, "ids"),
        ({"ids": [[5]] * 2049}, 422, "ids"),
        ({}, 422, "ids is missing"),
        ({"ids": [5], "skip_special_tokens": 1}, 422, "skip_special_tokens"),
    ],
)
async def test_decode_refuses(server: Server, body: dict[str, Any], status: int, problem: str) -> None:
    response = await server.client.post("/decode", json={"model": "embedder", **body})
    assert response.status_code == status and problem in response.json()["error"]
    assert response.json()["error_type"] == ("Empty" if status == 400 else "Validation")
    assert server.state.models["embedder"].admission.num_inputs == 0


async def test_decode_joins_words_as_the_tokenizer_does(pool: Any) -> None:
    raw = RawTokenizer(models.WordPiece({word: i for i, word in enumerate(VOCAB)}, unk_token="[UNK]"))
    raw.decoder = decoders.WordPiece()
    options = {"max_input_tokens": 8, "vocab_size": len(VOCAB), "type_vocab_size": 1, "pool": pool}
    tokenizer = Tokenizer(raw, **options)
    texts = await tokenizer.decode([ids("un", "##able", "##s", "word1")], skip_special_tokens=True, field="ids")
    assert texts == ["unables word1"]
    with pytest.raises(InvalidField, match=r"^ids cannot be read: this model has no tokenizer$"):
        await Tokenizer(None, **options).decode([[1]], skip_special_tokens=True, field="ids")
    with pytest.raises(EmptyInput):
        await tokenizer.decode([[]], skip_special_tokens=True, field="ids")


async def get_info(server: Server, *names: str) -> Any:
    for name in set(server.state.models) - set(names):
        del server.state.models[name]
    return (await server.client.get("/info")).json()


async def test_info_of_an_embedder(make_server: MakeServer) -> None:
    info = await get_info(make_server(truncation="right"), "embedder")
    expected = {
        "model_id": "unused",
        "model_sha": None,
        "model_dtype": "auto",
        "model_type": {"embedding": {"pooling": "mean"}},
        "max_concurrent_requests": 4096,
        "max_input_length": MAX_TOKENS,
        "max_batch_tokens": 4096,
        "max_batch_requests": 512,
        "max_client_batch_size": 2048,
        "auto_truncate": True,
        "tokenization_workers": 1,
    }
    assert {name: info[name] for name in expected} == expected
    assert info["server"] == "padless" and [model["name"] for model in info["models"]] == ["embedder"]


async def test_info_of_others(make_server: MakeServer) -> None:
    server = make_server(others={"ranker": RANKER})
    labels = {str(index): label for index, label in LABELS.items()}
    assert (await get_info(make_server(), "classifier"))["model_type"] == {
        "classifier": {"id2label": labels, "label2id": {label: index for index, label in CLASSIFIER.id2label.items()}}
    }
    assert (await get_info(server, "ranker"))["model_type"] == {
        "reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    }
    server = make_server(others={"judge": replace(RANKER, answer_token_ids=(7, 8)), "splade": SPARSE})
    assert (await get_info(server, "judge"))["model_type"].keys() == {"reranker"}
    server = make_server(others={"splade": SPARSE})
    assert (await get_info(server, "splade"))["model_type"] == {"sparse": {}}
