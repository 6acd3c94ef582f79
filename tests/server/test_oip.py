"""The Open Inference Protocol v2, in JSON and with tensors behind it."""

import json
import struct
from typing import Any

import numpy as np
import orjson
import pytest
from conftest import CLS, EMBED_DIM, MAX_TOKENS, SEP, VOCAB, Server, compute_row
from fake_generator import GenerationServer

pytestmark = pytest.mark.anyio

HEADER = "Inference-Header-Content-Length"
WORD1, WORD2 = VOCAB.index("word1"), VOCAB.index("word2")
IDS = [[CLS, WORD1, SEP, 0], [CLS, WORD1, WORD2, SEP]]
MASK = [[1, 1, 1, 0], [1, 1, 1, 1]]


def tensor(name: str, datatype: str, data: Any, shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape or list(np.shape(data)), "data": data}


async def infer(server: Server, *inputs: dict[str, Any], model: str = "embedder", **options: Any) -> Any:
    response = await server.client.post(f"/v2/models/{model}/infer", json={"inputs": list(inputs), **options})
    assert response.status_code == 200, response.text
    return response.json()


async def infer_binary(server: Server, head: dict[str, Any], *blobs: bytes) -> Any:
    raw = orjson.dumps(head)
    headers = {HEADER: str(len(raw)), "content-type": "application/octet-stream"}
    return await server.client.post("/v2/models/embedder/infer", content=raw + b"".join(blobs), headers=headers)


def expect(*rows: list[int]) -> np.ndarray:
    return np.stack([compute_row(np.array(row), EMBED_DIM) for row in rows])


async def test_texts(server: Server) -> None:
    answer = await infer(server, tensor("text", "BYTES", ["word1", "word1 word2"]), id="mine")
    (output,) = answer["outputs"]
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("mine", "embedder", "1")
    assert (output["name"], output["datatype"], output["shape"]) == ("embeddings", "FP32", [2, EMBED_DIM])
    found = np.array(output["data"]).reshape(2, EMBED_DIM)
    np.testing.assert_allclose(found, expect(IDS[0][:3], IDS[1]), rtol=1e-6)


async def test_padding_is_left_out_and_never_computed(server: Server) -> None:
    ids, mask = tensor("input_ids", "INT64", IDS), tensor("attention_mask", "INT64", MASK)
    answer = await infer(server, ids, mask)
    np.testing.assert_allclose(answer["outputs"][0]["data"], expect(IDS[0][:3], IDS[1]).ravel(), rtol=1e-6)
    assert server.embed.calls == [[IDS[0][:3], IDS[1]]]


async def test_flat_data_and_one_row(server: Server) -> None:
    await infer(server, tensor("input_ids", "INT32", [CLS, WORD1, SEP]))
    await infer(server, tensor("input_ids", "INT64", [CLS, WORD1, CLS, WORD2], [2, 2]))
    assert server.embed.calls == [[[CLS, WORD1, SEP]], [[CLS, WORD1], [CLS, WORD2]]]


async def test_types_of_tokens(server: Server) -> None:
    ids, types = tensor("input_ids", "INT64", [IDS[1]]), tensor("token_type_ids", "INT64", [[0, 0, 1, 1]])
    answer = await infer(server, ids, types, model="classifier")
    assert server.classify.types == [[[0, 0, 1, 1]]]
    assert answer["outputs"][0]["name"] == "logits" and answer["outputs"][0]["shape"] == [1, 3]


async def test_tensors_behind_the_json_both_ways(server: Server) -> None:
    ids, mask = np.array(IDS, "<i8"), np.array(MASK, "<i4")
    head = {
        "inputs": [
            {"name": "input_ids", "datatype": "INT64", "shape": [2, 4], "parameters": {"binary_data_size": 64}},
            {"name": "attention_mask", "datatype": "INT32", "shape": [2, 4], "parameters": {"binary_data_size": 32}},
        ],
        "outputs": [{"name": "embeddings", "parameters": {"binary_data": True}}],
    }
    response = await infer_binary(server, head, ids.tobytes(), mask.tobytes())
    assert response.headers["content-type"] == "application/octet-stream"
    size = int(response.headers[HEADER])
    (output,) = json.loads(response.content[:size])["outputs"]
    assert output["parameters"] == {"binary_data_size": 2 * EMBED_DIM * 4} and "data" not in output
    found = np.frombuffer(response.content[size:], "<f4").reshape(output["shape"])
    np.testing.assert_allclose(found, expect(IDS[0][:3], IDS[1]), rtol=1e-6)


async def test_texts_behind_the_json(server: Server) -> None:
    raw = b"".join(struct.pack("<I", len(text)) + text for text in (b"word1", b"word2"))
    text = {"name": "text", "datatype": "BYTES", "shape": [2, 1], "parameters": {"binary_data_size": len(raw)}}
    response = await infer_binary(server, {"inputs": [text], "parameters": {"binary_data_output": True}}, raw)
    assert len(response.content) - int(response.headers[HEADER]) == 2 * EMBED_DIM * 4
    assert server.embed.calls == [[[CLS, WORD1, SEP], [CLS, WORD2, SEP]]]


TEXT = tensor("text", "BYTES", ["word1"])
ONES = tensor("input_ids", "INT64", [[CLS, SEP]])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "inputs is missing"),
        ({"inputs": []}, "inputs must be 'text' alone, or 'input_ids'"),
        ({"inputs": [TEXT, ONES]}, "inputs must be 'text' alone"),
        ({"inputs": [ONES, ONES]}, "each at most once"),
        ({"inputs": [tensor("pixels", "INT64", [[1]])]}, "inputs must be 'text' alone"),
        ({"inputs": [tensor("text", "BYTES", ["a"], [2])]}, "text has 1 elements, and [2] are 2"),
        ({"inputs": [tensor("text", "BYTES", [1])]}, "the data of text must be strings"),
        ({"inputs": [tensor("text", "INT64", [1])]}, "text must be BYTES"),
        ({"inputs": [tensor("input_ids", "BYTES", ["a"])]}, "input_ids must hold whole numbers"),
        ({"inputs": [tensor("input_ids", "INT64", [[1.5]])]}, "the data of input_ids must be whole numbers"),
        ({"inputs": [tensor("input_ids", "INT64", [[1], [1, 2]], [3])]}, "rows of one length"),
        ({"inputs": [tensor("input_ids", "INT64", [[10**30]])]}, "must be whole numbers"),
        (
            {"inputs": [tensor("input_ids", "INT64", [[999]])]},
            "inputs has the token id 999; ids of this model go from 0",
        ),
        ({"inputs": [tensor("input_ids", "INT64", [[1] * (MAX_TOKENS + 1)])]}, "the limit is 16"),
        ({"inputs": [tensor("input_ids", "INT64", [[[1]]])]}, "one shape of two dimensions"),
        ({"inputs": [ONES, tensor("attention_mask", "INT64", [[1]])]}, "input_ids [1, 2], attention_mask [1, 1]"),
        ({"inputs": [ONES, tensor("attention_mask", "INT64", [[0, 0]])]}, "must not be empty"),
        ({"inputs": [ONES, tensor("token_type_ids", "INT64", [[0, 2]])]}, "token types outside 0 to 1"),
        ({"inputs": [ONES, tensor("token_type_ids", "INT64", [[0, 2**32]])]}, "token types outside 0 to 1"),
        ({"inputs": [tensor("input_ids", "UINT8", [[300, -5]])]}, "input_ids must be UINT8, from 0 to 255"),
        ({"inputs": [tensor("input_ids", "UINT64", [[2**63 + 5]])]}, "input_ids must be UINT64, from 0 to 9223"),
        ({"inputs": [ONES, tensor("attention_mask", "BOOL", [[1, 2]])]}, "attention_mask must be BOOL, from 0 to 1"),
        ({"inputs": [tensor("input_ids", "FP32", [[1.0]])]}, "inputs[0]: should be 'BOOL'"),
        ({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1]}]}, "either data or the parameter"),
        ({"inputs": [TEXT], "outputs": [{"name": "logits"}]}, "outputs: there is no 'logits'; there are embeddings"),
    ],
)
async def test_bad_requests_are_told_why(server: Server, body: Any, words: str) -> None:
    response = await server.client.post("/v2/models/embedder/infer", json=body)
    assert response.status_code == 400 and list(response.json()) == ["error"]
    assert words in response.json()["error"]


@pytest.mark.parametrize(
    ("size", "blob", "words"),
    [
        (8, b"1234", "8 bytes in all, and 4 follow the JSON"),
        (4, struct.pack("<I", 9), "longer than the tensor"),
        (2, b"12", "longer than the tensor"),
        (5, struct.pack("<I", 1) + b"\xff", "is not UTF-8"),
        (-1, b"", "must be a number of bytes"),
    ],
)
async def test_bad_bytes_are_told_why(server: Server, size: int, blob: bytes, words: str) -> None:
    text = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    response = await infer_binary(server, {"inputs": [text]}, blob)
    assert response.status_code == 400 and words in response.json()["error"]


async def test_numbers_behind_the_json_that_are_too_large(server: Server) -> None:
    ids = {"name": "input_ids", "datatype": "UINT64", "shape": [1, 1], "parameters": {"binary_data_size": 8}}
    response = await infer_binary(server, {"inputs": [ids]}, np.array([2**64 - 5], "<u8").tobytes())
    assert response.status_code == 400 and "must be UINT64, from 0 to" in response.json()["error"]


@pytest.mark.parametrize("length", ["0", "x", "100000", "9" * 5000])
async def test_a_length_that_cannot_be(server: Server, length: str) -> None:
    response = await server.client.post("/v2/models/embedder/infer", content=b"{}", headers={HEADER: length})
    assert response.status_code == 400 and HEADER in response.json()["error"]


async def test_metadata_and_health(server: Server) -> None:
    get = server.client.get
    assert "binary_tensor_data" in (await get("/v2")).json()["extensions"]
    assert (await get("/v2/health/live")).json() == {"live": True}
    assert (await get("/v2/health/ready")).json() == {"ready": True}
    facts = (await get("/v2/models/classifier/versions/1")).json()
    assert facts["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
    assert [item["name"] for item in facts["inputs"]] == ["text", "input_ids", "attention_mask", "token_type_ids"]
    assert (await get("/v2/models/classifier/ready")).json() == {"name": "classifier", "ready": True}


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/embedder/versions/2", "/v2/models/other/infer"])
async def test_what_is_not_there(server: Server, path: str) -> None:
    method = "POST" if path.endswith("infer") else "GET"
    response = await server.client.request(method, path, json={"inputs": [TEXT]} if method == "POST" else None)
    assert response.status_code == 404 and list(response.json()) == ["error"]


async def test_a_post_that_does_not_infer(server: Server) -> None:
    response = await server.client.post("/v2/models/embedder", json={"inputs": [TEXT]})
    assert response.status_code == 405 and list(response.json()) == ["error"]


async def test_generators_are_refused(generator: GenerationServer) -> None:
    response = await generator.client.post("/v2/models/writer/infer", json={"inputs": [TEXT]})
    assert response.status_code == 400 and "its task is generate" in response.json()["error"]
