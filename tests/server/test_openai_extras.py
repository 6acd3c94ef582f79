"""The fields of `/v1/embeddings` that clients of vLLM, Voyage and langchain send."""

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import CLS, EMBED_DIM, MAX_TOKENS, SEP, VOCAB, MakeServer, Server, compute_row

from server.tasks.vector_types import WRITERS

pytestmark = pytest.mark.anyio
WORDS = [f"word{index}" for index in range(20)]
TEXT = " ".join(WORDS)
DTYPES = {"float": "<f4", "float16": "<f2", "int8": "i1", "uint8": "u1", "binary": "i1", "ubinary": "u1"}


def ids(*words: str) -> list[int]:
    return [VOCAB.index(word) for word in words]


def expect(*words: str) -> np.ndarray:
    return compute_row(np.array([CLS, *ids(*words), SEP]), EMBED_DIM)[None]


async def check_refused(server: Server, param: str, **fields: Any) -> str:
    response = await server.embed_text(fields.pop("input", "word1"), **fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param and param in error["message"]
    assert server.embed.calls == []
    return str(error["message"])


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("field", ["output_dtype", "embed_dtype"])
async def test_types(server: Server, kind: str, field: str) -> None:
    expected = WRITERS[kind](expect("word5"))[0]  # type: ignore[index]
    numbers = (await server.embed_text("word5", **{field: kind})).json()["data"][0]["embedding"]
    np.testing.assert_allclose(numbers, expected, rtol=1e-6)
    answer = await server.embed_text("word5", **{field: kind}, encoding_format="base64", endianness="little")
    decoded = np.frombuffer(base64.b64decode(answer.json()["data"][0]["embedding"]), DTYPES[kind])
    np.testing.assert_array_equal(decoded, expected)


async def test_two_names_of_one_field(server: Server) -> None:
    await check_refused(server, "embed_dtype", output_dtype="int8", embed_dtype="float32")
    assert (await server.embed_text("word5", output_dtype="float", embed_dtype="float32")).status_code == 200


async def test_many_inputs_as_bits(server: Server) -> None:
    texts = [f"word{index % 60} word{index // 60}" for index in range(2048)]
    data = (await server.embed_text(texts, output_dtype="ubinary")).json()["data"]
    expected = [WRITERS["ubinary"](expect(*text.split()))[0].tolist() for text in texts]
    assert [item["embedding"] for item in data] == expected


async def test_bits_of_what_is_no_number(server: Server) -> None:
    server.embed.nan_rows = (1,)
    response = await server.embed_text(["word1", "word2"], output_dtype="binary")
    assert response.status_code == 500 and response.json()["error"]["code"] == "invalid_answer"
    assert "index 1" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate_prompt_tokens": -1}, WORDS[:14]),
        ({"truncate_prompt_tokens": 5}, WORDS[:3]),
        ({"truncate_prompt_tokens": 5, "truncation_side": "left"}, WORDS[17:]),
        ({"truncate_prompt_tokens": -1, "truncation_side": "left"}, WORDS[6:]),
        ({"truncate_prompt_tokens": MAX_TOKENS}, WORDS[:14]),
        ({"truncate_prompt_tokens": 1}, []),
    ],
)
async def test_truncation(server: Server, fields: dict[str, Any], kept: list[str]) -> None:
    assert (await server.embed_text(TEXT, **fields)).status_code == 200
    assert server.embed.calls == [[[CLS, *ids(*kept), SEP]]]


async def test_truncation_of_ids(server: Server) -> None:
    body = (await server.embed_text([[5, 6, 7], [8]], truncate_prompt_tokens=2)).json()
    assert server.embed.calls == [[[5, 6], [8]]] and body["usage"]["prompt_tokens"] == 3


async def test_the_configured_side_is_the_default(make_server: MakeServer) -> None:
    server = make_server(truncation="left")
    await server.embed_text(TEXT, truncate_prompt_tokens=4)
    assert server.embed.calls == [[[CLS, *ids(*WORDS[18:]), SEP]]]


async def test_special_tokens_may_be_left_out(server: Server) -> None:
    await server.embed_text("word1 word2", add_special_tokens=False)
    await server.embed_text(TEXT, add_special_tokens=False, truncate_prompt_tokens=2)
    assert server.embed.calls == [[ids("word1", "word2")], [ids("word0", "word1")]]


async def test_priority(make_server: MakeServer) -> None:
    server = make_server(http={"allow_priority": True})
    assert (await server.embed_text("word1", priority=-3)).status_code == 200
    assert server.embed.jobs[0].priority == -3
    refused = await make_server().embed_text("word1", priority=-3)
    assert refused.status_code == 403 and refused.json()["error"]["param"] == "priority"


async def test_request_id(server: Server) -> None:
    answer = await server.embed_text("word1", request_id="mine-1")
    assert answer.headers["x-request-id"] == "mine-1"
    answer = await server.embed_text("word1", request_id="mine-1", headers={"x-request-id": "header-1"})
    assert answer.headers["x-request-id"] == "header-1"
    for bad in ("a\nb", "\u00e9", "", "x" * 129, None):
        answer = await server.embed_text("word1", request_id=bad)
        assert answer.status_code == 200 and answer.headers["x-request-id"] != bad


async def test_additional_data_is_ignored(server: Server) -> None:
    assert (await server.embed_text("word1", additional_data={"a": [1]}, use_activation=True)).status_code == 200


async def test_matryoshka_dimensions(server: Server) -> None:
    model = server.state.models["embedder"]
    server.state.models["embedder"] = replace(model, info=replace(model.info, matryoshka_dimensions=(2, 4)))
    assert len((await server.embed_text("word1", dimensions=4)).json()["data"][0]["embedding"]) == 4
    response = await server.embed_text("word1", dimensions=3)
    assert response.json()["error"]["message"] == "dimensions is 3; this model was trained for 2, 4, 8"


async def test_vectors_of_any_length_are_only_cut(server: Server) -> None:
    model = server.state.models["embedder"]
    server.state.models["embedder"] = replace(model, info=replace(model.info, normalize=False))
    (item,) = (await server.embed_text("word5", dimensions=3)).json()["data"]
    np.testing.assert_allclose(item["embedding"], expect("word5")[0, :3], rtol=1e-6)


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("truncate_prompt_tokens", 0),
        ("truncate_prompt_tokens", -2),
        ("truncate_prompt_tokens", MAX_TOKENS + 1),
        ("truncate_prompt_tokens", "5"),
        ("truncate_prompt_tokens", 10**30),
        ("truncation_side", "middle"),
        ("output_dtype", "int4"),
        ("output_dtype", 8),
        ("embed_dtype", "bfloat16"),
        ("endianness", "big"),
        ("add_special_tokens", "yes"),
        ("priority", 1.5),
        ("request_id", 5),
    ],
)
async def test_wrong_values(server: Server, param: str, value: Any) -> None:
    await check_refused(server, param, **{param: value})


async def test_token_ids_as_langchain_sends_them(server: Server) -> None:
    """Texts tokenised by the client, cut in pieces, many in a call, as base64."""
    lists = [[5 + index % 50, 6, 7] for index in range(1000)]
    data = (await server.embed_text(lists, encoding_format="base64")).json()["data"]
    assert [item["index"] for item in data] == list(range(1000)) and server.embed.calls == [lists]
    rows = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in data]
    np.testing.assert_allclose(rows, [compute_row(np.array(each), EMBED_DIM) for each in lists], rtol=1e-6)
