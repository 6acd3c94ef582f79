"""What requests of the Open Inference Protocol may cost, whatever their tensors say of themselves."""

import struct
from time import monotonic
from typing import Any

import numpy as np
import orjson
import pytest
from conftest import MakeServer, Server
from test_oip import HEADER, infer_binary, tensor

pytestmark = pytest.mark.anyio

QUICK_S = 2.0
"""Far from the minutes that these would take."""


def list_ids(shape: list[int], size: int, datatype: str = "INT8") -> dict[str, Any]:
    return {"name": "input_ids", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


async def test_bytes_of_tensors_are_no_json(make_server: MakeServer) -> None:
    """Ids of 44 and 58 look like commas and colons."""
    server = make_server(http={"max_body_items": 4000})
    raw = np.full((64, 16), ord(":"), np.int8).tobytes()
    response = await infer_binary(server, {"inputs": [list_ids([64, 16], len(raw))]}, raw)
    assert response.status_code == 200, response.text
    raw = b"".join(struct.pack("<I", 99) + b"word1:,[{" + b" " * 90 for _ in range(100))
    text = {"name": "text", "datatype": "BYTES", "shape": [100], "parameters": {"binary_data_size": len(raw)}}
    response = await infer_binary(server, {"inputs": [text]}, raw)
    assert response.status_code == 200, response.text


async def test_json_in_front_of_tensors_is_bounded(make_server: MakeServer) -> None:
    server = make_server(http={"max_body_items": 4000})
    head = {"inputs": [list_ids([1, 4], 4)], "parameters": {"more": [[]] * 1000}}
    response = await infer_binary(server, head, b"1234")
    assert response.status_code == 413 and "too many values" in response.json()["error"]
    body = orjson.dumps(head)
    response = await server.client.post("/v2/models/embedder/infer", content=body, headers={HEADER: "9" * 9})
    assert response.status_code == 400 and HEADER in response.json()["error"]


@pytest.mark.parametrize(
    "given",
    [
        tensor("input_ids", "INT64", [], [1 << 40, 0]),
        tensor("text", "BYTES", [], [1 << 30, 1 << 30]),
        tensor("input_ids", "INT64", [], [0, 1 << 40]),
    ],
)
async def test_rows_that_are_not_there(server: Server, given: dict[str, Any]) -> None:
    begin_s = monotonic()
    response = await server.client.post("/v2/models/embedder/infer", json={"inputs": [given]})
    assert response.status_code == 400 and list(response.json()) == ["error"]
    assert monotonic() - begin_s < QUICK_S


@pytest.mark.parametrize(("name", "datatype", "size"), [("input_ids", "INT8", 1), ("text", "BYTES", 4)])
async def test_rows_are_counted_before_they_are_made(server: Server, name: str, datatype: str, size: int) -> None:
    count = 500_000
    given = {**list_ids([count, 1], count * size, datatype), "name": name}
    begin_s = monotonic()
    response = await infer_binary(server, {"inputs": [given]}, bytes(count * size))
    assert response.status_code == 400 and f"inputs has {count} items" in response.json()["error"]
    assert monotonic() - begin_s < QUICK_S


async def test_elements_beyond_the_shape_are_not_read(server: Server) -> None:
    given = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 2_000_000}}
    begin_s = monotonic()
    response = await infer_binary(server, {"inputs": [given]}, bytes(2_000_000))
    assert response.status_code == 400 and "text has over 1 elements, and [1] are 1" in response.json()["error"]
    assert monotonic() - begin_s < QUICK_S
